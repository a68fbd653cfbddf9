// Loaded before the C library (LD_PRELOAD), it stands in for the calls that change files below one folder: it counts
// them, and kills the process at one of them, or lets it fail. A `write` that is killed has written half of its bytes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT = 0, KILL = -1 };  // or an errno

static char folder[PATH_MAX];
static long calls, fault_at;
static int fault;

// From now on, below `path`, in one thread: what happens at call `at` (1, 2...). COUNT only counts. EIO fails that call
// alone. ENOSPC fails it if it needs room, half of a `write`, and all later ones that do. Every other errno fails it
// and all later ones.
void interpose_arm(const char* path, long at, int what) {
  snprintf(folder, sizeof folder, "%s", path);
  calls = 0, fault_at = at, fault = what;
}

long interpose_calls(void) { return calls; }

static int in_folder(const char* path) {
  const size_t size = strlen(folder);
  return size > 0 && strncmp(path, folder, size) == 0 && (path[size] == '/' || path[size] == 0);
}

static int below(int at, const char* path) {
  char full[2 * PATH_MAX], link[64], base[PATH_MAX] = "";
  if (folder[0] == 0 || path == NULL) return 0;
  if (path[0] == '/') return in_folder(path);
  snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
  const ssize_t size = readlink(link, base, sizeof base - 1);
  if (size < 0) return 0;
  snprintf(full, sizeof full, "%.*s/%s", (int)size, base, path);
  return in_folder(full);
}

static int file_below(int file) {
  char link[64], path[PATH_MAX] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  return size > 0 && in_folder(path);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// Whether this call, which is one of those that count, has to fail; errno is set.
static int fails(int needs_room) {
  ++calls;
  if (fault == COUNT || calls < fault_at) return 0;
  if (fault == KILL) die();
  if (fault == EIO && calls > fault_at) return 0;
  if (fault == ENOSPC && !needs_room) return 0;
  errno = fault;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)

static int takes_mode(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

#define OPEN(name)                                                                     \
  int name(const char* path, int flags, ...) {                                         \
    va_list more;                                                                      \
    va_start(more, flags);                                                             \
    const mode_t mode = takes_mode(flags) ? va_arg(more, mode_t) : 0;                  \
    va_end(more);                                                                      \
    if (flags & CHANGES && below(AT_FDCWD, path) && fails(flags & O_CREAT)) return -1; \
    return REAL(name)(path, flags, mode);                                              \
  }
#define OPENAT(name)                                                             \
  int name(int at, const char* path, int flags, ...) {                           \
    va_list more;                                                                \
    va_start(more, flags);                                                       \
    const mode_t mode = takes_mode(flags) ? va_arg(more, mode_t) : 0;            \
    va_end(more);                                                                \
    if (flags & CHANGES && below(at, path) && fails(flags & O_CREAT)) return -1; \
    return REAL(name)(at, path, flags, mode);                                    \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void* bytes, size_t size) {
  if (file_below(file)) {
    const int half = calls + 1 == fault_at && size > 1;
    if (half && fault == KILL) {
      REAL(write)(file, bytes, size / 2);
      REAL(fsync)(file);
      die();
    }
    if (half && fault == ENOSPC) {  // what fits is written, and the rest fails
      ++calls;
      return REAL(write)(file, bytes, size / 2);
    }
    if (fails(1)) return -1;
  }
  return REAL(write)(file, bytes, size);
}

int fsync(int file) { return file_below(file) && fails(1) ? -1 : REAL(fsync)(file); }
int ftruncate64(int file, off64_t size) { return file_below(file) && fails(0) ? -1 : REAL(ftruncate64)(file, size); }
int rename(const char* from, const char* to) { return below(AT_FDCWD, to) && fails(0) ? -1 : REAL(rename)(from, to); }
int mkdir(const char* path, mode_t mode) { return below(AT_FDCWD, path) && fails(1) ? -1 : REAL(mkdir)(path, mode); }
int rmdir(const char* path) { return below(AT_FDCWD, path) && fails(0) ? -1 : REAL(rmdir)(path); }
int unlink(const char* path) { return below(AT_FDCWD, path) && fails(0) ? -1 : REAL(unlink)(path); }
int unlinkat(int at, const char* path, int flags) {
  return below(at, path) && fails(0) ? -1 : REAL(unlinkat)(at, path, flags);
}
