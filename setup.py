"""Runs CMake for `csrc/` and nothing else: all metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # an isolated build does not have the checkout on its path
from jointmae.build_info import source_hash  # noqa: E402

NO_COMPILER = """
jointmae: no C++ compiler found (looked for $CXX, c++, g++, clang++, cl), so the native kernels are not built.
The package works, on the slower PyTorch reference path. To get the kernels, install a compiler
(Debian/Ubuntu: apt install g++; macOS: xcode-select --install; Windows: Visual Studio Build Tools) and install again.
"""


def has_cxx_compiler() -> bool:
    """Whether any C++ compiler is in sight."""
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    return any(shutil.which(name.split()[0]) for name in candidates if name)


class CMakeBuild(build_ext):
    """Configures and builds `csrc/` into the one top-level module `jointmae_native`."""

    def run(self) -> None:  # noqa: D102
        if not has_cxx_compiler():
            print(NO_COMPILER, file=sys.stderr)
            self.extensions = []  # nothing is left to copy or to list
        super().run()

    def build_extension(self, ext: Extension) -> None:  # noqa: D102
        import pybind11

        build = Path(self.build_temp).resolve() / "cmake"
        # A cache that an earlier isolated build left names tools in folders that are gone.
        shutil.rmtree(build / "CMakeFiles", ignore_errors=True)
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        self._cmake(
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DJOINTMAE_SOURCE_HASH={source_hash(ROOT)}",
            f"-DJOINTMAE_MODULE_DIR={module.parent}",
            f"-DJOINTMAE_CUDA={os.environ.get('JOINTMAE_CUDA', 'AUTO')}",
            f"-DJOINTMAE_WERROR={os.environ.get('JOINTMAE_WERROR', 'OFF')}",
        )
        self._cmake("--build", str(build))

    @staticmethod
    def _cmake(*arguments: str) -> None:
        try:
            subprocess.run(["cmake", *arguments], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"jointmae: building the native kernels failed: {error}\nThe lines above say why."
            ) from error


setup(ext_modules=[Extension("jointmae_native", sources=[])], cmdclass={"build_ext": CMakeBuild})
