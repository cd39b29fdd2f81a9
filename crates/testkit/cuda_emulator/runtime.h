// What the parts of the emulator ask of one another: fibers.cpp runs kernels, driver.cpp is the fake driver, blas.cpp the fake
// cuBLASLt.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "emulator.h"

// A function that the program finds by its name.
#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace emulator {

// The kernels of all files, by name.
const std::map<std::string, Kernel>& kernels();

// Runs all blocks of a launch. The caller holds the lock of the driver.
void run_kernel(const Kernel& kernel, uint3 grid, uint3 block, size_t shared_bytes, void** arguments);

// Prints what is wrong and ends the process: a test must not go on after it.
[[noreturn]] void fail(const std::string& message);

// `2 bytes behind an allocation of 100 bytes` and the like, for messages.
std::string describe_address(const void* address);

// Whether all these bytes are in one allocation of device memory.
bool is_device_memory(const void* address, size_t n_bytes);

// Does `work` in the order of the stream: at once, or at each launch of the graph that is being captured. Gives a result of
// the driver.
int in_stream(void* stream, std::function<void()> work);

}  // namespace emulator
