// Checks the emulator through the interface of the driver. `self_test` runs all checks; `self_test fault N` commits a fault
// that must end the process with a message.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <initializer_list>
#include <random>
#include <vector>

#include "emulator.h"

using Address = uint64_t;
extern "C" {
int cuInit(unsigned int);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuStreamCreate(void**, unsigned int);
int cuStreamSynchronize(void*);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemAllocAsync(Address*, size_t, void*);
int cuMemFreeAsync(Address, void*);
int cuMemcpyHtoDAsync_v2(Address, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, Address, size_t, void*);
int cuMemsetD32Async(Address, unsigned int, size_t, void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuEventCreate(void**, unsigned int);
int cuEventRecord(void*, void*);
int cuEventSynchronize(void*);
int cuEventElapsedTime_v2(float*, void*, void*);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*,
                   void*, const void*, void*, size_t, void*);
}

#define REQUIRE(condition)                                                         \
    do {                                                                           \
        if (!(condition)) {                                                        \
            fprintf(stderr, "%s:%d: not %s\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                               \
        }                                                                          \
    } while (0)

namespace {

void* stream;
void* module;

void* kernel(const char* name) {
    void* function = nullptr;
    REQUIRE(cuModuleGetFunction(&function, module, name) == 0);
    return function;
}

Address memory(size_t n_bytes) {
    Address address = 0;
    REQUIRE(cuMemAllocAsync(&address, n_bytes, stream) == 0);
    return address;
}

template <typename T>
Address upload(const std::vector<T>& values) {
    const Address address = memory(values.size() * sizeof(T));
    REQUIRE(cuMemcpyHtoDAsync_v2(address, values.data(), values.size() * sizeof(T), stream) == 0);
    return address;
}

template <typename T>
std::vector<T> download(Address address, size_t n) {
    std::vector<T> values(n);
    REQUIRE(cuMemcpyDtoHAsync_v2(values.data(), address, n * sizeof(T), stream) == 0);
    REQUIRE(cuStreamSynchronize(stream) == 0);
    return values;
}

int launch(const char* name, unsigned n_blocks, unsigned n_threads, unsigned shared_bytes,
           std::initializer_list<void*> arguments) {
    std::vector<void*> pointers(arguments);
    return cuLaunchKernel(kernel(name), n_blocks, 1, 1, n_threads, 1, 1, shared_bytes, stream, pointers.data(), nullptr);
}

std::mt19937 generator(7);

std::vector<bf16> random_bf16(size_t n) {
    std::normal_distribution<float> normal;
    std::vector<bf16> values;
    for (size_t i = 0; i < n; i++) values.push_back(from_f32<bf16>(normal(generator)));
    return values;
}

bool near(double got, double expected) { return std::abs(got - expected) < 1e-5; }

void barriers() {
    std::vector<float> x(3 * 200);
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i);
    Address from = upload(x), to = memory(x.size() * 4);
    REQUIRE(launch("reverse_blocks", 3, 200, 800, {&from, &to}) == 0);
    const auto got = download<float>(to, x.size());
    for (size_t i = 0; i < x.size(); i++) REQUIRE(got[i] == x[i / 200 * 200 + 199 - (i + 1) % 200]);
    REQUIRE(launch("reverse_without_barrier", 1, 200, 800, {&from, &to}) == 0);
    size_t n_right = 0;
    const auto hasty = download<float>(to, 200);
    for (size_t i = 0; i < 200; i++) n_right += hasty[i] == x[199 - i];
    REQUIRE(n_right < 200);
    REQUIRE(launch("unwritten_shared", 2, 32, 128, {&to}) == 0);
    for (float each : download<float>(to, 128)) REQUIRE(std::isnan(each));
    for (Address each : {from, to}) REQUIRE(cuMemFreeAsync(each, stream) == 0);
}

void warps() {
    Address to = memory(128 * 8);
    REQUIRE(launch("shuffles", 1, 32, 0, {&to}) == 0);
    const auto got = download<double>(to, 128);
    for (int lane = 0; lane < 32; lane++) {
        REQUIRE(got[lane] == (lane + 1) % 32);
        REQUIRE(got[32 + lane] == (lane ^ 5));
        REQUIRE(got[64 + lane] == (lane + 1) % 32 + 0.125);
        REQUIRE(got[96 + lane] == std::ldexp(lane ^ 5, 40));
    }
}

void tensor_cores() {
    const auto a = random_bf16(256), b = random_bf16(256), narrow = random_bf16(128);
    std::vector<float> c(128);
    for (float& each : c) each = static_cast<float>(&each - &c[0]);
    Address left = upload(a), right = upload(b), narrow_right = upload(narrow), sum = upload(c), product = memory(1024);
    REQUIRE(launch("multiply_by_table", 1, 32, 0, {&left, &narrow_right, &sum}) == 0);
    REQUIRE(launch("multiply_by_ldmatrix", 1, 32, 0, {&left, &right, &product}) == 0);
    const auto got_sum = download<float>(sum, 128), got_product = download<float>(product, 256);
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++) {
            double wide = 0, with_c = c[row * 8 + column % 8];
            for (int k = 0; k < 16; k++) {
                wide += static_cast<double>(to_f32(a[row * 16 + k])) * to_f32(b[k * 16 + column]);
                with_c += static_cast<double>(to_f32(a[row * 16 + k])) * to_f32(narrow[k * 8 + column % 8]);
            }
            REQUIRE(near(got_product[row * 16 + column], wide));
            REQUIRE(std::abs(got_sum[row * 8 + column % 8] - with_c) < 1e-4);
        }
}

void warpgroups() {
    const auto a = random_bf16(64 * 128), b = random_bf16(64 * 128), c = random_bf16(64 * 128);
    Address left = upload(a), right = upload(b), across = upload(c), to = memory(64 * 64 * 4), second_to = memory(64 * 128 * 4);
    const unsigned shared_bytes = 3 * 64 * 128 * 2;
    REQUIRE(launch("multiply_by_warpgroup", 1, 128, shared_bytes, {&left, &right, &across, &to, &second_to}) == 0);
    const auto first = download<float>(to, 64 * 64), second = download<float>(second_to, 64 * 128);
    for (int row = 0; row < 64; row++) {
        for (int column = 0; column < 64; column++) {
            double sum = 0;
            for (int k = 0; k < 128; k++) sum += static_cast<double>(to_f32(a[row * 128 + k])) * to_f32(b[column * 128 + k]);
            REQUIRE(std::abs(first[row * 64 + column] - sum) < 1e-4);
        }
        for (int column = 0; column < 128; column++) {
            double sum = 0;
            for (int k = 0; k < 64; k++) {
                sum += static_cast<double>(to_f32(from_f32<bf16>(first[row * 64 + k]))) * to_f32(c[k * 128 + column]);
            }
            REQUIRE(std::abs(second[row * 128 + column] - sum) < 1e-2);
        }
    }
}

void late_copies() {
    std::vector<float> x(256);
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(i);
    Address from = upload(x), to = memory(192 * 4);
    REQUIRE(launch("copies", 1, 32, 0, {&from, &to}) == 0);
    const auto got = download<float>(to, 192);
    for (int lane = 0; lane < 32; lane++) {
        const float first = lane % 2 == 0 ? x[lane * 4 + 3] : 0, second = x[(32 + lane) * 4 + 3];
        REQUIRE(std::isnan(got[lane]) && std::isnan(got[32 + lane]));
        REQUIRE(got[64 + lane] == first && std::isnan(got[96 + lane]));
        REQUIRE(got[128 + lane] == first && got[160 + lane] == second);
    }
}

void rounding() {
    // Ties go to even, the largest numbers to infinity, NaN stays NaN whatever its bits.
    const std::vector<float> x = {1.00390625f, 1.01171875f, 1.004f, -1.00390625f, 3.4e38f, INFINITY,
                                  __uint_as_float(0x7f800001), -0.0f};
    Address from = upload(x), to = memory(32);
    REQUIRE(launch("round_to_bf16", 1, 8, 0, {&from, &to}) == 0);
    const auto got = download<float>(to, 8);
    REQUIRE(got[0] == 1.0f && got[1] == 1.015625f && got[2] == 1.0078125f && got[3] == -1.0f);
    REQUIRE(got[4] == INFINITY && got[5] == INFINITY && std::isnan(got[6]) && got[7] == 0 && std::signbit(got[7]));
    REQUIRE(pack_bf16(1.0f, -2.0f) == 0xc0003f80);
}

void refusals() {
    void* function;
    REQUIRE(cuModuleGetFunction(&function, module, "none") == 500);
    Address to = memory(1024);
    const unsigned much = 64 * 1024;
    REQUIRE(launch("unwritten_shared", 1, 32, much, {&to}) == 1);
    REQUIRE(cuFuncSetAttribute(kernel("unwritten_shared"), 8, 300000) == 1);
    REQUIRE(cuFuncSetAttribute(kernel("unwritten_shared"), 8, much) == 0);
    REQUIRE(launch("unwritten_shared", 1, 32, much, {&to}) == 0);
    REQUIRE(launch("unwritten_shared", 1, 1025, 128, {&to}) == 1);
    REQUIRE(launch("unwritten_shared", 0, 32, 128, {&to}) == 1);
    REQUIRE(cuMemsetD32Async(to, 0, 257, stream) == 1);
    Address much_memory;
    REQUIRE(cuMemAllocAsync(&much_memory, (size_t{1} << 30) + 1, stream) == 2);
    REQUIRE(cuMemAllocAsync(&much_memory, 0, stream) == 1);
    REQUIRE(cuMemFreeAsync(to + 16, stream) == 1);
    size_t before, after, total;
    REQUIRE(cuMemGetInfo_v2(&before, &total) == 0 && cuMemFreeAsync(to, stream) == 0);
    REQUIRE(cuMemGetInfo_v2(&after, &total) == 0 && after == before + 1024);
}

// A read-back arrives when the program waits, with what the memory held when it was asked for.
void read_backs() {
    Address from = upload(std::vector<float>{5.0f});
    float got = 0;
    REQUIRE(cuMemcpyDtoHAsync_v2(&got, from, 4, stream) == 0);
    REQUIRE(cuMemsetD32Async(from, 0, 1, stream) == 0);
    REQUIRE(std::isnan(got));
    REQUIRE(cuStreamSynchronize(stream) == 0 && got == 5.0f);
    REQUIRE(std::isnan(download<float>(memory(4), 1)[0]));
    // An event waits for what was before it alone.
    void* event;
    float later = 0, milliseconds = -1;
    REQUIRE(cuEventCreate(&event, 0) == 0 && cuEventSynchronize(event) == 0);
    REQUIRE(cuEventElapsedTime_v2(&milliseconds, event, event) == 400);
    REQUIRE(cuMemcpyDtoHAsync_v2(&got, from, 4, stream) == 0 && cuEventRecord(event, stream) == 0);
    REQUIRE(cuMemcpyDtoHAsync_v2(&later, from, 4, stream) == 0 && cuEventSynchronize(event) == 0);
    REQUIRE(got == 0 && std::isnan(later));
    REQUIRE(cuEventElapsedTime_v2(&milliseconds, event, event) == 0 && milliseconds == 0);
    REQUIRE(cuStreamSynchronize(stream) == 0 && later == 0);
}

int product(void* description, void* a_layout, Address a, void* b_layout, Address b, float beta, void* d_layout, Address d) {
    const float alpha = 2;
    const auto at = [](Address address) { return reinterpret_cast<void*>(address); };
    return cublasLtMatmul(nullptr, description, &alpha, at(a), a_layout, at(b), b_layout, &beta, at(d), d_layout, at(d), d_layout,
                          nullptr, nullptr, 0, stream);
}

// 2 op(A) op(B) + beta D for A [5, 7] and B [7, 3], of which columns are 2 further apart than they need be.
template <typename T>
void check_product(int transposes_a, int transposes_b, float beta) {
    const int m = 5, n = 3, k = 7, type = sizeof(T) == 4 ? 0 : 14;
    const int a_rows = transposes_a ? k : m, b_rows = transposes_b ? n : k;
    const auto random = [](size_t n_values) {
        std::vector<T> values;
        for (bf16 each : random_bf16(n_values)) values.push_back(from_f32<T>(to_f32(each)));
        return values;
    };
    const auto a = random((a_rows + 2) * (transposes_a ? m : k)), b = random((b_rows + 2) * (transposes_b ? k : n));
    std::vector<float> d((m + 2) * n, 3.0f);
    const Address a_address = upload(a), b_address = upload(b), d_address = upload(d);
    void *description, *a_layout, *b_layout, *d_layout;
    REQUIRE(cublasLtMatmulDescCreate(&description, 68, 0) == 0);
    REQUIRE(cublasLtMatmulDescSetAttribute(description, 3, &transposes_a, 4) == 0);
    REQUIRE(cublasLtMatmulDescSetAttribute(description, 4, &transposes_b, 4) == 0);
    REQUIRE(cublasLtMatrixLayoutCreate(&a_layout, type, a_rows, transposes_a ? m : k, a_rows + 2) == 0);
    REQUIRE(cublasLtMatrixLayoutCreate(&b_layout, type, b_rows, transposes_b ? k : n, b_rows + 2) == 0);
    REQUIRE(cublasLtMatrixLayoutCreate(&d_layout, 0, m, n, m + 2) == 0);
    REQUIRE(product(description, a_layout, a_address, b_layout, b_address, beta, d_layout, d_address) == 0);
    REQUIRE(product(description, b_layout, b_address, b_layout, b_address, beta, d_layout, d_address) == 7);
    const auto got = download<float>(d_address, d.size());
    for (int column = 0; column < n; column++)
        for (int row = 0; row < m + 2; row++) {
            double sum = 0;
            for (int i = 0; i < k && row < m; i++)
                sum += static_cast<double>(to_f32(transposes_a ? a[row * (k + 2) + i] : a[i * (m + 2) + row])) *
                       to_f32(transposes_b ? b[i * (n + 2) + column] : b[column * (k + 2) + i]);
            REQUIRE(near(got[column * (m + 2) + row], row < m ? 2 * sum + beta * 3 : 3));
        }
}

void products() {
    for (int which = 0; which < 8; which++) {
        check_product<float>(which & 1, which >> 1 & 1, static_cast<float>(which >> 2));
        check_product<bf16>(which & 1, which >> 1 & 1, static_cast<float>(which >> 2));
    }
}

// A graph does nothing until it is launched, then the same with other numbers.
void graphs() {
    Address from = upload(std::vector<float>(32, 1.0f)), to = memory(128);
    REQUIRE(cuStreamBeginCapture_v2(stream, 0) == 0);
    REQUIRE(launch("reverse_blocks", 1, 32, 128, {&from, &to}) == 0);
    void *graph, *executable;
    REQUIRE(cuStreamEndCapture(stream, &graph) == 0 && cuGraphInstantiateWithFlags(&executable, graph, 0) == 0);
    REQUIRE(std::isnan(download<float>(to, 32)[0]));
    for (float value : {1.0f, 2.0f}) {
        const std::vector<float> values(32, value);
        REQUIRE(cuMemcpyHtoDAsync_v2(from, values.data(), 128, stream) == 0);
        REQUIRE(cuGraphLaunch(executable, stream) == 0);
        REQUIRE(download<float>(to, 32) == values);
    }
    REQUIRE(cuStreamBeginCapture_v2(stream, 0) == 0);
    Address none;
    REQUIRE(cuMemAllocAsync(&none, 16, stream) == 900);
    REQUIRE(launch("reverse_blocks", 1, 32, 128, {&from, &to}) == 901);
    REQUIRE(cuStreamEndCapture(stream, &graph) == 901);
    REQUIRE(cuStreamSynchronize(stream) == 0);
}

void commit(int which) {
    Address x = upload(std::vector<float>(which < 15 ? 64 : 2048)), out = memory(which < 15 ? 256 : 512);
    if (which == 13) REQUIRE(cuMemFreeAsync(x, stream) == 0);
    if (which >= 15) REQUIRE(launch("warpgroup_faults", 1, 128, 8192, {&x, &out, &which}) == 0);
    // In any case the end of the process comes in the launch or when the memory is freed.
    if (launch(which == 14 ? "much_local" : "faults", 1, 64, 256, {&x, &out, &which}) == 0) cuMemFreeAsync(out, stream);
}

}  // namespace

int main(int n_arguments, char** arguments) {
    void* context;
    REQUIRE(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0);
    REQUIRE(cuStreamCreate(&stream, 1) == 201);
    REQUIRE(cuCtxSetCurrent(context) == 0 && cuStreamCreate(&stream, 1) == 0);
    REQUIRE(cuModuleLoadData(&module, "") == 0);
    if (n_arguments == 3) {
        commit(atoi(arguments[2]));
        return 0;
    }
    barriers();
    warps();
    tensor_cores();
    warpgroups();
    late_copies();
    rounding();
    refusals();
    read_backs();
    products();
    graphs();
    return 0;
}
