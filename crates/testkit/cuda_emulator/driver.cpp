// A fake CUDA driver, libcuda.so.1: one GPU of 1 GiB that runs the kernels of this library (fibers.cpp) on the caller's thread.
//
// It refuses what the real one refuses as far as the program can make that mistake: no current context, a launch beyond the
// limits, copies outside of allocations, work that cannot be captured. Memory begins as NaN and lies between guards: the page
// behind an allocation faults, the bytes before it are checked when it is freed, and its place faults for a while after that.
// Everything happens at the call, but what is copied to the host arrives when the program waits for the stream, not before.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime.h"

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

struct Name {
    int result;
    const char* name;
    const char* text;
};
constexpr Name NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
};

constexpr size_t DEVICE_BYTES = size_t{1} << 30;
constexpr size_t PAGE_BYTES = 4096;
constexpr size_t DEFAULT_SHARED_BYTES = 48 * 1024;
constexpr size_t MAX_SHARED_BYTES = 232448;
constexpr size_t N_FREED_KEPT = 1024;
constexpr uint8_t NAN_BYTE = 0xff;
constexpr uint8_t GUARD_BYTE = 0xa5;

using Clock = std::chrono::steady_clock;
using Address = uint64_t;
using Work = std::function<void()>;

// A copy to the host that waits for the program to wait.
struct ReadBack {
    uint8_t* host;
    std::vector<uint8_t> bytes;
};

struct Stream {
    std::vector<ReadBack> read_backs;
    // How many read-backs have arrived since the beginning.
    uint64_t n_arrived = 0;
    bool is_capturing = false;
    bool is_invalid = false;
    std::vector<Work> captured;
};

struct Event {
    Clock::time_point time;
    Stream* stream = nullptr;
    // The read-backs of the stream that were before it.
    uint64_t n_before = 0;
    bool is_recorded = false;
};

struct Graph {
    std::vector<Work> works;
};

struct Allocation {
    uint8_t* mapped;
    size_t mapped_bytes;
    size_t n_bytes;
};

// Everything that the driver knows; one call at a time.
struct Driver {
    std::recursive_mutex lock;
    bool is_initialised = false;
    // The current context of each thread. No thread_local variable: that memory is the kernels' shared memory.
    pthread_key_t current;
    std::map<Address, Allocation> allocations;
    size_t allocated_bytes = 0;
    // The last that were freed; what comes there faults.
    std::deque<std::pair<Address, Allocation>> freed;
    std::map<void*, std::unique_ptr<uint8_t[]>> host_memory;
    std::map<Stream*, std::unique_ptr<Stream>> streams;
    std::map<Event*, std::unique_ptr<Event>> events;
    std::map<Graph*, std::unique_ptr<Graph>> graphs;
    Stream default_stream;

    Driver() { pthread_key_create(&current, nullptr); }
};

Driver& driver() {
    // Never destroyed: other threads may still call while the process ends.
    static Driver* the = new Driver;
    return *the;
}

std::unique_lock<std::recursive_mutex> locked() { return std::unique_lock(driver().lock); }

bool has_context() { return driver().is_initialised && pthread_getspecific(driver().current) != nullptr; }

Stream* stream_of(void* handle) {
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return &driver().default_stream;
    const auto found = driver().streams.find(static_cast<Stream*>(handle));
    return found == driver().streams.end() ? nullptr : found->second.get();
}

// What cannot be part of a graph ends the capture.
int refuse_capture(Stream& stream) {
    stream.is_invalid = true;
    return CAPTURE_UNSUPPORTED;
}

// Any stream that captures forbids what waits for the device.
Stream* capturing() {
    for (auto& [stream, _] : driver().streams)
        if (stream->is_capturing) return stream;
    return nullptr;
}

const std::pair<const Address, Allocation>* allocation_around(Address address) {
    const auto next = driver().allocations.upper_bound(address);
    return next == driver().allocations.begin() ? nullptr : &*std::prev(next);
}

bool is_in_allocation(Address address, size_t n_bytes) {
    const auto* found = allocation_around(address);
    return found != nullptr && n_bytes <= found->second.n_bytes && address - found->first <= found->second.n_bytes - n_bytes;
}

uint8_t* bytes_at(Address address) { return reinterpret_cast<uint8_t*>(address); }

int allocate(Address* out, size_t n_bytes) {
    if (out == nullptr || n_bytes == 0) return INVALID_VALUE;
    if (n_bytes > DEVICE_BYTES - driver().allocated_bytes) return OUT_OF_MEMORY;
    // It ends before a page that faults, but begins at a multiple of 16; the rest are guards.
    const size_t rounded = (n_bytes + 15) / 16 * 16;
    const size_t usable = (rounded + 16 + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    void* mapped = mmap(nullptr, usable + PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
    uint8_t* begin = static_cast<uint8_t*>(mapped);
    if (mprotect(begin + usable, PAGE_BYTES, PROT_NONE) != 0) emulator::fail("mprotect refuses a guard");
    memset(begin, GUARD_BYTE, usable);
    memset(begin + usable - rounded, NAN_BYTE, n_bytes);
    *out = reinterpret_cast<Address>(begin + usable - rounded);
    driver().allocations[*out] = {begin, usable, n_bytes};
    driver().allocated_bytes += n_bytes;
    return SUCCESS;
}

int release(Address address) {
    if (address == 0) return SUCCESS;
    const auto found = driver().allocations.find(address);
    if (found == driver().allocations.end()) return INVALID_VALUE;
    const Allocation& allocation = found->second;
    const uint8_t* begin = bytes_at(address);
    const uint8_t* end = begin + allocation.n_bytes;
    for (const uint8_t* byte = allocation.mapped; byte < allocation.mapped + allocation.mapped_bytes; byte++) {
        if (byte == begin) byte = end;
        if (byte < allocation.mapped + allocation.mapped_bytes && *byte != GUARD_BYTE)
            emulator::fail("a kernel wrote " + emulator::describe_address(byte));
    }
    driver().allocated_bytes -= allocation.n_bytes;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(allocation.mapped, allocation.mapped_bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED)
        emulator::fail("mmap refuses to replace an allocation");
    driver().freed.push_back(*found);
    driver().allocations.erase(found);
    if (driver().freed.size() > N_FREED_KEPT) {
        const Allocation& oldest = driver().freed.front().second;
        munmap(oldest.mapped, oldest.mapped_bytes + PAGE_BYTES);
        driver().freed.pop_front();
    }
    return SUCCESS;
}

void arrive(Stream& stream, uint64_t n_in_all) {
    size_t n = 0;
    for (; n < stream.read_backs.size() && stream.n_arrived < n_in_all; n++, stream.n_arrived++)
        memcpy(stream.read_backs[n].host, stream.read_backs[n].bytes.data(), stream.read_backs[n].bytes.size());
    stream.read_backs.erase(stream.read_backs.begin(), stream.read_backs.begin() + static_cast<ptrdiff_t>(n));
}

// Runs or captures.
int enqueue(void* handle, Work work) {
    if (!has_context()) return INVALID_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    if (stream->is_invalid) return CAPTURE_INVALIDATED;
    if (stream->is_capturing)
        stream->captured.push_back(std::move(work));
    else
        work();
    return SUCCESS;
}

template <typename T>
int fill(Address address, T value, size_t n, void* stream) {
    if (!is_in_allocation(address, n * sizeof(T)) || address % sizeof(T) != 0) return INVALID_VALUE;
    return enqueue(stream, [=] {
        for (size_t i = 0; i < n; i++) memcpy(bytes_at(address) + i * sizeof(T), &value, sizeof(T));
    });
}

int attribute(int which) {
    switch (which) {
        case 1: return 1024;     // threads of a block
        case 2: case 3: return 1024;
        case 4: return 64;
        case 5: return 2147483647;
        case 6: case 7: return 65535;
        case 8: return DEFAULT_SHARED_BYTES;
        case 10: return 32;      // lanes of a warp
        case 12: return 65536;   // registers of a block
        case 16: return 2;       // multiprocessors
        case 39: return 2048;    // threads of a multiprocessor
        case 75: return 9;
        case 76: return 0;
        case 81: return 233472;  // shared memory of a multiprocessor
        case 97: return MAX_SHARED_BYTES;
        case 115: return 1;      // memory pools
        default: return 0;
    }
}

}  // namespace

namespace emulator {

bool is_device_memory(const void* address, size_t n_bytes) {
    return is_in_allocation(reinterpret_cast<Address>(address), n_bytes);
}

int in_stream(void* stream, std::function<void()> work) {
    const auto lock = locked();
    return enqueue(stream, std::move(work));
}

std::string describe_address(const void* pointer) {
    const Address address = reinterpret_cast<Address>(pointer);
    char text[200];
    snprintf(text, sizeof text, "at %#zx", static_cast<size_t>(address));
    const auto* before = allocation_around(address);
    if (before != nullptr && address - before->first < before->second.n_bytes) {
        snprintf(text, sizeof text, "at byte %zu of an allocation of %zu bytes", static_cast<size_t>(address - before->first),
                 before->second.n_bytes);
        return text;
    }
    for (const auto& [begin, allocation] : driver().freed)
        if (address >= begin && address - begin < allocation.n_bytes) {
            snprintf(text, sizeof text, "at byte %zu of an allocation of %zu bytes that was freed",
                     static_cast<size_t>(address - begin), allocation.n_bytes);
            return text;
        }
    // The nearer of the neighbours is what was meant.
    size_t behind = SIZE_MAX;
    if (before != nullptr) {
        behind = address - before->first - before->second.n_bytes;
        snprintf(text, sizeof text, "%zu bytes behind the end of an allocation of %zu bytes", behind, before->second.n_bytes);
    }
    const auto after = driver().allocations.upper_bound(address);
    if (after != driver().allocations.end() && after->first - address < behind)
        snprintf(text, sizeof text, "%zu bytes before the beginning of an allocation of %zu bytes",
                 static_cast<size_t>(after->first - address), after->second.n_bytes);
    return text;
}

}  // namespace emulator

PUBLIC int cuInit(unsigned int flags) {
    const auto lock = locked();
    driver().is_initialised = true;
    return flags == 0 ? SUCCESS : INVALID_VALUE;
}
PUBLIC int cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
PUBLIC int cuGetErrorName(int result, const char** name) {
    for (const Name& each : NAMES)
        if (each.result == result) return *name = each.name, SUCCESS;
    *name = nullptr;
    return INVALID_VALUE;
}
PUBLIC int cuGetErrorString(int result, const char** text) {
    for (const Name& each : NAMES)
        if (each.result == result) return *text = each.text, SUCCESS;
    *text = nullptr;
    return INVALID_VALUE;
}

PUBLIC int cuDeviceGetCount(int* n) {
    if (!driver().is_initialised) return NOT_INITIALIZED;
    *n = 1;
    return SUCCESS;
}
PUBLIC int cuDeviceGet(int* device, int ordinal) {
    if (!driver().is_initialised) return NOT_INITIALIZED;
    if (ordinal != 0) return INVALID_DEVICE;
    *device = 0;
    return SUCCESS;
}
PUBLIC int cuDeviceGetName(char* name, int n_bytes, int device) {
    if (device != 0) return INVALID_DEVICE;
    snprintf(name, static_cast<size_t>(n_bytes), "emulated GPU");
    return SUCCESS;
}
PUBLIC int cuDeviceGetAttribute(int* value, int which, int device) {
    if (device != 0) return INVALID_DEVICE;
    *value = attribute(which);
    return SUCCESS;
}
PUBLIC int cuDeviceTotalMem_v2(size_t* n_bytes, int device) {
    if (device != 0) return INVALID_DEVICE;
    *n_bytes = DEVICE_BYTES;
    return SUCCESS;
}
PUBLIC int cuMemGetInfo_v2(size_t* free, size_t* total) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    *free = DEVICE_BYTES - driver().allocated_bytes;
    *total = DEVICE_BYTES;
    return SUCCESS;
}
PUBLIC int cuDevicePrimaryCtxRetain(void** context, int device) {
    if (!driver().is_initialised) return NOT_INITIALIZED;
    if (device != 0) return INVALID_DEVICE;
    *context = &driver();
    return SUCCESS;
}
PUBLIC int cuDevicePrimaryCtxRelease_v2(int device) { return device == 0 ? SUCCESS : INVALID_DEVICE; }
PUBLIC int cuCtxSetCurrent(void* context) {
    if (context != nullptr && context != &driver()) return INVALID_CONTEXT;
    pthread_setspecific(driver().current, context);
    return SUCCESS;
}

PUBLIC int cuStreamCreate(Stream** out, unsigned int) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    auto stream = std::make_unique<Stream>();
    *out = stream.get();
    driver().streams[*out] = std::move(stream);
    return SUCCESS;
}
PUBLIC int cuStreamDestroy_v2(Stream* stream) {
    const auto lock = locked();
    return driver().streams.erase(stream) == 1 ? SUCCESS : INVALID_HANDLE;
}
PUBLIC int cuStreamSynchronize(void* handle) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    if (stream->is_capturing) return refuse_capture(*stream);
    arrive(*stream, UINT64_MAX);
    return SUCCESS;
}

PUBLIC int cuMemAllocAsync(Address* address, size_t n_bytes, void* handle) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    return stream->is_capturing ? refuse_capture(*stream) : allocate(address, n_bytes);
}
PUBLIC int cuMemFreeAsync(Address address, void* handle) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    return stream->is_capturing ? refuse_capture(*stream) : release(address);
}
PUBLIC int cuMemAlloc_v2(Address* address, size_t n_bytes) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    if (Stream* stream = capturing()) return refuse_capture(*stream);
    return allocate(address, n_bytes);
}
PUBLIC int cuMemFree_v2(Address address) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    if (Stream* stream = capturing()) return refuse_capture(*stream);
    return release(address);
}
PUBLIC int cuMemAllocHost_v2(void** out, size_t n_bytes) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    if (n_bytes == 0) return INVALID_VALUE;
    auto memory = std::make_unique<uint8_t[]>(n_bytes);
    memset(memory.get(), NAN_BYTE, n_bytes);
    *out = memory.get();
    driver().host_memory[*out] = std::move(memory);
    return SUCCESS;
}
PUBLIC int cuMemFreeHost(void* memory) {
    const auto lock = locked();
    return driver().host_memory.erase(memory) == 1 ? SUCCESS : INVALID_VALUE;
}
PUBLIC int cuDeviceGetDefaultMemPool(void** pool, int device) {
    if (device != 0) return INVALID_DEVICE;
    *pool = &driver();
    return SUCCESS;
}
PUBLIC int cuMemPoolSetAttribute(void* pool, int, void* value) {
    return pool == &driver() && value != nullptr ? SUCCESS : INVALID_VALUE;
}

PUBLIC int cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n_bytes, void* stream) {
    const auto lock = locked();
    if (!is_in_allocation(to, n_bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { memcpy(bytes_at(to), from, n_bytes); });
}
PUBLIC int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n_bytes, void* stream) {
    const auto lock = locked();
    if (!is_in_allocation(to, n_bytes) || !is_in_allocation(from, n_bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { memmove(bytes_at(to), bytes_at(from), n_bytes); });
}
PUBLIC int cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n_bytes, void* handle) {
    const auto lock = locked();
    if (!is_in_allocation(from, n_bytes)) return INVALID_VALUE;
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    return enqueue(handle, [=] {
        uint8_t* host = static_cast<uint8_t*>(to);
        stream->read_backs.push_back({host, {bytes_at(from), bytes_at(from) + n_bytes}});
        memset(host, NAN_BYTE, n_bytes);
    });
}
PUBLIC int cuMemsetD8Async(Address address, unsigned char value, size_t n, void* stream) {
    const auto lock = locked();
    return fill(address, value, n, stream);
}
PUBLIC int cuMemsetD32Async(Address address, unsigned int value, size_t n, void* stream) {
    const auto lock = locked();
    return fill(address, value, n, stream);
}

PUBLIC int cuModuleLoadData(void** module, const void* image) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    if (image == nullptr) return INVALID_VALUE;
    *module = &driver();
    return SUCCESS;
}
PUBLIC int cuModuleUnload(void* module) { return module == &driver() ? SUCCESS : INVALID_HANDLE; }
PUBLIC int cuModuleGetFunction(const emulator::Kernel** kernel, void* module, const char* name) {
    const auto lock = locked();
    if (module != &driver()) return INVALID_HANDLE;
    const auto found = emulator::kernels().find(name);
    if (found == emulator::kernels().end()) return NOT_FOUND;
    *kernel = &found->second;
    return SUCCESS;
}
// Attribute 8 is the most dynamic shared memory of a launch.
PUBLIC int cuFuncSetAttribute(const emulator::Kernel* kernel, int which, int value) {
    const auto lock = locked();
    if (which != 8) return SUCCESS;
    if (value < 0 || static_cast<size_t>(value) > MAX_SHARED_BYTES) return INVALID_VALUE;
    kernel->max_shared_bytes = static_cast<size_t>(value);
    return SUCCESS;
}
PUBLIC int cuFuncGetAttribute(int* value, int which, const emulator::Kernel* kernel) {
    const auto lock = locked();
    *value = which == 0 ? 1024 : which == 8 ? static_cast<int>(kernel->max_shared_bytes) : 0;
    return SUCCESS;
}

PUBLIC int cuLaunchKernel(const emulator::Kernel* kernel, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                          unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                          void* stream, void** arguments, void** extra) {
    const auto lock = locked();
    const bool is_empty = grid_x == 0 || grid_y == 0 || grid_z == 0 || block_x == 0 || block_y == 0 || block_z == 0;
    if (is_empty || grid_x > 2147483647 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (block_x > 1024 || block_y > 1024 || block_z > 64 || block_x * block_y * block_z > 1024) return INVALID_VALUE;
    const size_t most = kernel->max_shared_bytes > DEFAULT_SHARED_BYTES ? kernel->max_shared_bytes : DEFAULT_SHARED_BYTES;
    if (shared_bytes > most || extra != nullptr) return INVALID_VALUE;
    // The values as they are now: a graph launches with them later.
    std::vector<std::vector<uint8_t>> values;
    for (int i = 0; i < kernel->n_arguments; i++) {
        const uint8_t* value = static_cast<const uint8_t*>(arguments[i]);
        values.emplace_back(value, value + kernel->argument_bytes[i]);
    }
    const uint3 grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
    return enqueue(stream, [=]() mutable {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(value.data());
        emulator::run_kernel(*kernel, grid, block, shared_bytes, pointers.data());
    });
}

// CUlaunchConfig. The one attribute that is used lets kernels overlap, which these never do.
struct LaunchConfiguration {
    unsigned int grid[3], block[3], shared_bytes;
    void* stream;
    const void* attributes;
    unsigned int n_attributes;
};
PUBLIC int cuLaunchKernelEx(const LaunchConfiguration* configuration, const emulator::Kernel* kernel, void** arguments,
                            void** extra) {
    const LaunchConfiguration& c = *configuration;
    if (c.n_attributes > 0 && c.attributes == nullptr) return INVALID_VALUE;
    return cuLaunchKernel(kernel, c.grid[0], c.grid[1], c.grid[2], c.block[0], c.block[1], c.block[2], c.shared_bytes,
                          c.stream, arguments, extra);
}

PUBLIC int cuEventCreate(Event** out, unsigned int) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    auto event = std::make_unique<Event>();
    *out = event.get();
    driver().events[*out] = std::move(event);
    return SUCCESS;
}
PUBLIC int cuEventDestroy_v2(Event* event) {
    const auto lock = locked();
    return driver().events.erase(event) == 1 ? SUCCESS : INVALID_HANDLE;
}
PUBLIC int cuEventRecord(Event* event, void* handle) {
    const auto lock = locked();
    Stream* stream = stream_of(handle);
    if (stream == nullptr || driver().events.count(event) == 0) return INVALID_HANDLE;
    return enqueue(handle, [=] {
        *event = {Clock::now(), stream, stream->n_arrived + stream->read_backs.size(), true};
    });
}
PUBLIC int cuEventSynchronize(Event* event) {
    const auto lock = locked();
    if (driver().events.count(event) == 0) return INVALID_HANDLE;
    if (event->is_recorded && stream_of(event->stream) != nullptr) arrive(*event->stream, event->n_before);
    return SUCCESS;
}
PUBLIC int cuEventElapsedTime_v2(float* milliseconds, Event* begin, Event* end) {
    const auto lock = locked();
    if (driver().events.count(begin) == 0 || driver().events.count(end) == 0) return INVALID_HANDLE;
    if (!begin->is_recorded || !end->is_recorded) return INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
    return SUCCESS;
}
PUBLIC int cuEventElapsedTime(float* milliseconds, Event* begin, Event* end) {
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}

PUBLIC int cuStreamBeginCapture_v2(Stream* handle, int) {
    const auto lock = locked();
    if (!has_context()) return INVALID_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    // The default stream cannot be captured.
    if (stream == &driver().default_stream || stream->is_capturing) return INVALID_VALUE;
    stream->is_capturing = true;
    return SUCCESS;
}
PUBLIC int cuStreamEndCapture(Stream* handle, Graph** out) {
    const auto lock = locked();
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return INVALID_HANDLE;
    if (!stream->is_capturing) return INVALID_VALUE;
    const bool is_invalid = stream->is_invalid;
    auto graph = std::make_unique<Graph>();
    graph->works.swap(stream->captured);
    stream->is_capturing = stream->is_invalid = false;
    *out = nullptr;
    if (is_invalid) return CAPTURE_INVALIDATED;
    *out = graph.get();
    driver().graphs[*out] = std::move(graph);
    return SUCCESS;
}
PUBLIC int cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long) {
    const auto lock = locked();
    if (driver().graphs.count(graph) == 0) return INVALID_VALUE;
    auto executable = std::make_unique<Graph>(*graph);
    *out = executable.get();
    driver().graphs[*out] = std::move(executable);
    return SUCCESS;
}
PUBLIC int cuGraphLaunch(Graph* graph, void* stream) {
    const auto lock = locked();
    if (driver().graphs.count(graph) == 0) return INVALID_VALUE;
    return enqueue(stream, [works = graph->works] {
        for (const Work& work : works) work();
    });
}
PUBLIC int cuGraphDestroy(Graph* graph) {
    const auto lock = locked();
    return driver().graphs.erase(graph) == 1 ? SUCCESS : INVALID_VALUE;
}
PUBLIC int cuGraphExecDestroy(Graph* graph) { return cuGraphDestroy(graph); }
