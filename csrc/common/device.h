// What the machine's CUDA driver can do.
#pragma once

namespace jointmae {

// True if there is a driver that is new enough for the toolkit the module was built with. Never waits, never throws.
bool cuda_driver_serves_toolkit();

}  // namespace jointmae
