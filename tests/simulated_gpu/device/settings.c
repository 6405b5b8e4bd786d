/* Devices and their properties, the lock, errors. */
#include "runtime.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static __thread int current;
static __thread cudaError_t last_error;

void lock(void) { pthread_mutex_lock(&mutex); }
void unlock(void) { pthread_mutex_unlock(&mutex); }

static unsigned long long setting(const char *name, unsigned long long otherwise) {
  const char *text = getenv(name);
  return text ? strtoull(text, NULL, 10) : otherwise;
}

int device_count(void) {
  static int count;
  if (!count) {
    int asked = (int)setting("SIMULATED_GPU_COUNT", 1);
    count = asked < 1 ? 1 : asked > MAX_DEVICES ? MAX_DEVICES : asked;
  }
  return count;
}

size_t device_memory(void) {
  static size_t bytes;
  if (!bytes) bytes = setting("SIMULATED_GPU_MEMORY", 24ull << 30);
  return bytes;
}

int compute_capability(void) {
  static int capability;
  if (!capability) capability = (int)setting("SIMULATED_GPU_CAPABILITY", 80);
  return capability;
}

int current_device(void) { return current; }

cudaError_t fail(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

static const struct {
  cudaError_t error;
  const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "the simulated device has no such operation (see stderr)"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered", "memory is already registered"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered", "memory is not registered"},
};
enum { ERRORS = sizeof errors / sizeof *errors };

const char *cudaGetErrorName(cudaError_t error) {
  for (int i = 0; i < ERRORS; i++)
    if (errors[i].error == error) return errors[i].name;
  return "cudaErrorUnknown";
}

const char *cudaGetErrorString(cudaError_t error) {
  for (int i = 0; i < ERRORS; i++)
    if (errors[i].error == error) return errors[i].text;
  return "unknown error";
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = device_count();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

/* Shared memory of a block on request: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". */
static int shared_memory(void) {
  switch (compute_capability()) {
    case 80: return 163 << 10;
    case 90: case 100: return 227 << 10;
    default: return 99 << 10;
  }
}

enum { PROCESSORS = 108, THREADS_OF_A_BLOCK = 1024, REGISTERS = 65536 };

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "Simulated GPU (host memory)");
  p->uuid.bytes[15] = (char)device;
  p->totalGlobalMem = device_memory();
  p->major = compute_capability() / 10;
  p->minor = compute_capability() % 10;
  p->warpSize = 32;
  p->multiProcessorCount = PROCESSORS;
  p->maxThreadsPerBlock = THREADS_OF_A_BLOCK;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = shared_memory();
  p->sharedMemPerMultiprocessor = shared_memory() + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = REGISTERS;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = THREADS_OF_A_BLOCK;
  p->maxThreadsDim[2] = 64;
  p->l2CacheSize = 40 << 20;
  p->textureAlignment = 512;
  p->memPitch = 2147483647;
  p->unifiedAddressing = p->concurrentKernels = 1;
  p->pciBusID = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = compute_capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = compute_capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_memory(); break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
  snprintf(text, size, "0000:%02x:00.0", device);
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

/* No device reaches another's memory: what crosses goes through a copy. */
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
