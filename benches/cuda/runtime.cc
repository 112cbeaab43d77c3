// CUDA's runtime (version 13) without a device: memory is the host's, copies are made, and kernels are counted but not
// run. What a device refuses while a stream is captured is refused here, too. `count_kernels.py` builds it. What happens
// is written to the file that the variable CUDA_EVENTS names, a line for each event.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct dim3 { unsigned x, y, z; };
struct Copy { void *into; const void *from; size_t bytes; };
struct Graph { std::vector<std::string> kernels; std::vector<Copy> copies; };
struct Launch { dim3 grid, block; size_t shared; void *stream; };

constexpr int SUCCESS = 0, NOT_SUPPORTED_IN_CAPTURE = 900;

std::mutex guard;
std::map<const void *, std::string> names;
std::map<uintptr_t, size_t> allocations;
Graph *capturing = nullptr;
void *captured_stream = nullptr;
thread_local std::vector<Launch> launches;
thread_local int last_error = SUCCESS;

FILE *events() {
  static FILE *file = [] {
    const char *path = getenv("CUDA_EVENTS");
    return path ? fopen(path, "w") : nullptr;
  }();
  return file;
}

void tell(const char *event, const std::string &what) {
  if (events()) { fprintf(events(), "%s %s\n", event, what.c_str()); fflush(events()); }
}

int kernel(const std::string &name) {
  std::lock_guard<std::mutex> lock(guard);
  if (capturing) capturing->kernels.push_back(name);
  tell(capturing ? "captured" : "kernel", name);
  return SUCCESS;
}

// What a device refuses while a stream is captured.
int waits(const char *call) {
  std::lock_guard<std::mutex> lock(guard);
  if (!capturing) return SUCCESS;
  tell("refused", call);
  return last_error = NOT_SUPPORTED_IN_CAPTURE;
}

int allocate(void **out, size_t bytes, bool is_device) {
  *out = calloc(1, bytes ? bytes : 1);
  if (!*out) return 2;
  std::lock_guard<std::mutex> lock(guard);
  if (is_device) allocations[(uintptr_t)*out] = bytes;
  return SUCCESS;
}

bool is_device(const void *address) {
  auto next = allocations.upper_bound((uintptr_t)address);
  if (next == allocations.begin()) return false;
  auto found = std::prev(next);
  return (uintptr_t)address < found->first + found->second;
}

// What the host is told where it decides by a result that nobody computed: that a condition holds (no view is padded), and
// that a `NonZero` has found as many places as the variable CUDA_PLACES says.
void answer(void *into, size_t bytes) {
  static const char *places = getenv("CUDA_PLACES");
  if (bytes == 1) *(char *)into = 1;
  if (bytes == 8 && places && *(long *)into == 0) *(long *)into = atol(places);
}

int copy(void *into, const void *from, size_t bytes) {
  std::lock_guard<std::mutex> lock(guard);
  const char *names[] = {"host", "device"};
  tell(capturing ? "captured copy" : "copy", std::string(names[is_device(from)]) + " " + names[is_device(into)] + " " + std::to_string(bytes));
  if (capturing) capturing->copies.push_back({into, from, bytes});
  else memcpy(into, from, bytes);
  if (!capturing && is_device(from) && !is_device(into)) answer(into, bytes);
  return SUCCESS;
}

// The last kernel of `TopK` (largest values, their places), whose results the host reads: as of a model that is sure, so
// that answers go on without all logits. They stay for each replay.
void write_candidates(dim3 grid, void **arguments) {
  const int count = 64;
  float *values = *(float **)arguments[2];
  long *places = *(long **)arguments[3];
  for (int i = 0; i < int(grid.x) * count; i++) {
    values[i] = 10.0f - 0.1f * (i % count);
    places[i] = 1000 + i % count;
  }
}

}  // namespace

extern "C" {

int count_kernel(const char *name) { return kernel(name); }

void **__cudaRegisterFatBinary(void *) { static void *handle[1]; return handle; }
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, void *, void *, void *, void *, int *) {
  names[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  launches.push_back({grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  Launch launch = launches.back();
  launches.pop_back();
  *grid = launch.grid; *block = launch.block; *shared = launch.shared; *(void **)stream = launch.stream;
  return SUCCESS;
}
int __cudaGetKernel(const void **out, const void *function) { *out = function; return SUCCESS; }
int cudaLaunchKernel(const void *function, dim3 grid, dim3, void **arguments, size_t, void *) {
  if (names[function].find("WriteOutput") != std::string::npos) write_candidates(grid, arguments);
  return kernel(names[function]);
}
int __cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}
int cudaLaunchCooperativeKernel(const void *function, dim3, dim3, void **, size_t, void *) { return kernel(names[function]); }
int cudaLaunchKernelExC(const void *, const void *function, void **) { return kernel(names[function]); }
int cudaLibraryLoadData(void **library, ...) { static int dummy; *library = &dummy; return SUCCESS; }
int cudaLibraryUnload(void *) { return SUCCESS; }
int cudaLibraryGetKernel(const void **kernel, void *, const char *name) {
  char *copy = strdup(name);
  names[copy] = name;
  *kernel = copy;
  return SUCCESS;
}
int cudaLaunchHostFunc(void *, void (*call)(void *), void *data) {
  if (!capturing) call(data);
  return SUCCESS;
}

int cudaMalloc(void **out, size_t bytes) { int error = waits("cudaMalloc"); return error ? error : allocate(out, bytes, true); }
int cudaMallocFromPoolAsync(void **out, size_t bytes, void *, void *) { return allocate(out, bytes, true); }
int cudaMallocHost(void **out, size_t bytes) { return allocate(out, bytes, false); }
int cudaHostAlloc(void **out, size_t bytes, unsigned) { return allocate(out, bytes, false); }
int cudaFree(void *address) {
  if (int error = waits("cudaFree")) return error;
  std::lock_guard<std::mutex> lock(guard);
  allocations.erase((uintptr_t)address);
  free(address);
  return SUCCESS;
}
int cudaFreeAsync(void *address, void *) { return cudaFree(address); }
int cudaFreeHost(void *address) { free(address); return SUCCESS; }
int cudaMemcpy(void *into, const void *from, size_t bytes, int) { int error = waits("cudaMemcpy"); return error ? error : copy(into, from, bytes); }
int cudaMemcpyAsync(void *into, const void *from, size_t bytes, int, void *) { return copy(into, from, bytes); }
int cudaMemcpy2DAsync(char *into, size_t into_pitch, const char *from, size_t from_pitch, size_t width, size_t height, int, void *) {
  for (size_t row = 0; row < height; row++) copy(into + row * into_pitch, from + row * from_pitch, width);
  return SUCCESS;
}
int cudaMemcpyFromSymbol(void *into, const void *, size_t bytes, size_t, int) { memset(into, 0, bytes); return waits("cudaMemcpyFromSymbol"); }
int cudaMemset(void *into, int value, size_t bytes) { int error = waits("cudaMemset"); if (!error) memset(into, value, bytes); return error; }
int cudaMemsetAsync(void *into, int value, size_t bytes, void *) {
  kernel("memset");
  if (!capturing) memset(into, value, bytes);
  return SUCCESS;
}
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 64ull << 30; return SUCCESS; }
int cudaMemPoolCreate(void **pool, const void *) { static int dummy; *pool = &dummy; return SUCCESS; }
int cudaMemPoolDestroy(void *) { return SUCCESS; }
int cudaMemPoolGetAttribute(void *, int, void *value) { *(uint64_t *)value = 0; return SUCCESS; }
int cudaMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
int cudaMemPoolTrimTo(void *, size_t) { return SUCCESS; }
int cudaPointerGetAttributes(void *attributes, const void *address) {
  struct Attributes { int type, device; void *device_pointer, *host_pointer; };
  std::lock_guard<std::mutex> lock(guard);
  *(Attributes *)attributes = {is_device(address) ? 2 : 0, 0, (void *)address, (void *)address};
  return SUCCESS;
}

int cudaStreamCreate(void **stream) { *stream = malloc(1); return SUCCESS; }
int cudaStreamCreateWithFlags(void **stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void *stream) { free(stream); return SUCCESS; }
int cudaStreamSynchronize(void *) { tell("synchronize", "stream"); return waits("cudaStreamSynchronize"); }
int cudaStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cudaDeviceSynchronize() { return waits("cudaDeviceSynchronize"); }
int cudaEventCreate(void **event) { return cudaStreamCreate(event); }
int cudaEventCreateWithFlags(void **event, unsigned) { return cudaStreamCreate(event); }
int cudaEventDestroy(void *event) { free(event); return SUCCESS; }
int cudaEventElapsedTime(float *ms, void *, void *) { *ms = 1; return SUCCESS; }
int cudaEventRecord(void *, void *) { return SUCCESS; }
int cudaEventRecordWithFlags(void *, void *, unsigned) { return SUCCESS; }
int cudaEventSynchronize(void *) { return waits("cudaEventSynchronize"); }

int cudaStreamBeginCapture(void *stream, int) {
  std::lock_guard<std::mutex> lock(guard);
  capturing = new Graph, captured_stream = stream;
  tell("capture", "begins");
  return SUCCESS;
}
int cudaStreamIsCapturing(void *stream, int *status) { *status = capturing && stream == captured_stream; return SUCCESS; }
int cudaStreamEndCapture(void *, Graph **graph) {
  std::lock_guard<std::mutex> lock(guard);
  *graph = capturing, capturing = nullptr;
  tell("capture", "ends with " + std::to_string((*graph)->kernels.size()) + " kernels and " + std::to_string((*graph)->copies.size()) + " copies");
  return SUCCESS;
}
int cudaGraphInstantiate(Graph **instance, Graph *graph, unsigned long long) { *instance = new Graph(*graph); return SUCCESS; }
int cudaGraphLaunch(Graph *graph, void *) {
  tell("replay", std::to_string(graph->kernels.size()));
  for (const Copy &c : graph->copies) memcpy(c.into, c.from, c.bytes);
  return SUCCESS;
}
int cudaGraphDestroy(Graph *graph) { delete graph; return SUCCESS; }
int cudaGraphExecDestroy(Graph *graph) { delete graph; return SUCCESS; }

int cudaGetDevice(int *device) { *device = 0; return SUCCESS; }
int cudaSetDevice(int) { return SUCCESS; }
int cudaGetDeviceCount(int *count) { *count = 1; return SUCCESS; }
int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaGetDriverEntryPointByVersion(const char *, void **function, unsigned, unsigned long long, int *found) {
  *function = (void *)+[] { return 0; };
  if (found) *found = 0;
  return SUCCESS;
}
int cudaDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {  // as an H100 has them
    case 1: *value = 1024; break;     // threads of a block
    case 8: *value = 49152; break;    // shared memory of a block
    case 10: *value = 32; break;      // threads of a warp
    case 16: *value = 132; break;     // multiprocessors
    case 39: *value = 2048; break;    // threads of a multiprocessor
    case 75: *value = 9; break;       // compute capability
    case 76: *value = 0; break;
    case 81: *value = 233472; break;  // shared memory of a multiprocessor
    case 82: *value = 65536; break;   // registers of a multiprocessor
    case 97: *value = 232448; break;  // shared memory of a block that asks for it
    default: *value = 1;
  }
  return SUCCESS;
}
// The beginning of `cudaDeviceProp`, as driver_types.h of CUDA 13 has it.
struct Properties {
  char name[256], uuid[16], luid[8];
  unsigned luid_mask;
  size_t global_memory, shared_memory_of_block;
  int registers_of_block, warp;
  size_t pitch;
  int threads_of_block, block[3], grid[3];
  size_t constant_memory;
  int major, minor;
  size_t texture[2];
  int multiprocessors, integrated, maps_host, textures_and_surfaces[39];
  size_t surface_alignment;
  int various[8], memory_bus, l2_cache, persisting_l2, threads_of_multiprocessor, caches[3];
  size_t shared_memory_of_multiprocessor;
  int registers_of_multiprocessor, more[8], cooperative;
  size_t shared_memory_of_block_if_asked;
};
int cudaGetDeviceProperties(Properties *p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no device");
  p->global_memory = 80ull << 30, p->shared_memory_of_block = 49152, p->registers_of_block = 65536, p->warp = 32;
  p->threads_of_block = 1024, p->block[0] = p->block[1] = 1024, p->block[2] = 64;
  p->grid[0] = 2147483647, p->grid[1] = p->grid[2] = 65535, p->constant_memory = 65536;
  p->major = 9, p->minor = 0, p->multiprocessors = 132, p->l2_cache = 50 << 20, p->threads_of_multiprocessor = 2048;
  p->shared_memory_of_multiprocessor = 233472, p->registers_of_multiprocessor = 65536, p->cooperative = 1;
  p->shared_memory_of_block_if_asked = 232448;
  return SUCCESS;
}
int cudaFuncGetAttributes(void *attributes, const void *) {
  struct { size_t sizes[3]; int threads, registers, versions[2]; } few = {{0, 0, 0}, 1024, 32, {90, 90}};
  memcpy(attributes, &few, sizeof few);
  return SUCCESS;
}
int cudaFuncSetAttribute(const void *, int, int) { return SUCCESS; }
int cudaKernelSetAttributeForDevice(const void *, int, int, int) { return SUCCESS; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) { *blocks = 2; return SUCCESS; }
int cudaGetLastError() { int error = last_error; last_error = SUCCESS; return error; }
int cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(int) { return "an error"; }
const char *cudaGetErrorString(int error) { return error == NOT_SUPPORTED_IN_CAPTURE ? "not while a stream is captured" : "an error"; }
}
