/* Compiled CUDA kernels: they are registered, so that the name of one that is launched can be told, and never run. */
#include "runtime.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const void *host;
  const char *name;
} Kernel;

static Kernel *kernels;
static size_t count, capacity;

void __cudaRegisterFunction(void **binary, const char *host, char *device, const char *name, int limit, uint3 *thread,
                            uint3 *block, dim3 *block_size, dim3 *grid_size, int *warp) {
  lock();
  if (count == capacity) kernels = realloc(kernels, (capacity = 2 * capacity + 1024) * sizeof *kernels);
  kernels[count++] = (Kernel){host, name};
  unlock();
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void **binary) {}
void __cudaUnregisterFatBinary(void **binary) {}
void __cudaRegisterVar(void **binary, char *host, char *device, const char *name, int extern_, size_t size, int constant,
                       int global) {}
char __cudaInitModule(void **binary) { return 1; }

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configuration.grid = grid;
  configuration.block = block;
  configuration.shared = shared;
  configuration.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *(void **)stream = configuration.stream;
  return cudaSuccess;
}

static cudaError_t refuse_launch(const void *host) {
  const char *name = "an unknown kernel";
  lock();
  for (size_t i = 0; i < count; i++)
    if (kernels[i].host == host) name = kernels[i].name;
  unlock();
  fprintf(stderr, "simulated GPU: a compiled CUDA kernel was launched, which cannot run here: %s\n", name);
  return fail(cudaErrorNotSupported);
}

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
  return refuse_launch(f);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
  return refuse_launch(f);
}

cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t s) {
  return refuse_launch(f);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *launch, const void *f, void **arguments) {
  return refuse_launch(f);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *f) {
  memset(attributes, 0, sizeof *attributes);
  attributes->binaryVersion = attributes->ptxVersion = compute_capability();
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute attribute, int value) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *f, int threads, size_t shared) {
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
  *function = NULL;
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
