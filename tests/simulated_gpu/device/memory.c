/* Memory: each device has a set number of bytes, and memory that was just allocated holds NaN in every float format. */
#include "runtime.h"
#include <stdlib.h>
#include <string.h>

enum { DEVICE_ALIGNMENT = 512, PAGE = 4096, POISON = 0xFF };

static Allocation *allocations; /* by address, none overlap */
static size_t count, capacity;
static size_t used[MAX_DEVICES];

/* The index of the first allocation that starts above an address. */
static size_t upper_bound(const void *address) {
  size_t low = 0, high = count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (allocations[middle].start <= (const char *)address) low = middle + 1;
    else high = middle;
  }
  return low;
}

const Allocation *find_allocation(const void *address) {
  size_t above = upper_bound(address);
  if (!above) return NULL;
  const Allocation *a = &allocations[above - 1];
  return (const char *)address < a->start + a->size ? a : NULL;
}

static void add(void *start, size_t size, Kind kind) {
  if (count == capacity) allocations = realloc(allocations, (capacity = 2 * capacity + 64) * sizeof *allocations);
  size_t place = upper_bound(start);
  memmove(allocations + place + 1, allocations + place, (count - place) * sizeof *allocations);
  allocations[place] = (Allocation){start, size, kind, current_device()};
  count++;
}

static size_t round_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

/* Takes the allocation of a kind that starts at an address out of the table, after all queued work, which may use it. */
static int take(void *start, Kind kind) {
  run_everything();
  const Allocation *a = find_allocation(start);
  if (!a || a->start != start || a->kind != kind) return 0;
  size_t place = a - allocations;
  if (kind == DEVICE) used[a->device] -= a->size;
  memmove(allocations + place, allocations + place + 1, (count - place - 1) * sizeof *allocations);
  count--;
  return 1;
}

cudaError_t cudaMalloc(void **pointer, size_t size) {
  size_t bytes = round_up(size ? size : 1, DEVICE_ALIGNMENT);
  int device = current_device();
  lock();
  void *memory = bytes > device_memory() - used[device] ? NULL : aligned_alloc(DEVICE_ALIGNMENT, bytes);
  if (memory) {
    memset(memory, POISON, bytes);
    add(memory, bytes, DEVICE);
    used[device] += bytes;
    *pointer = memory;
  }
  unlock();
  return memory ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t stream) { return cudaMalloc(pointer, size); }

static cudaError_t release(void *pointer, Kind kind) {
  if (!pointer) return cudaSuccess;
  lock();
  int found = take(pointer, kind);
  if (found) free(pointer);
  unlock();
  return found ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaFree(void *pointer) { return release(pointer, DEVICE); }
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return cudaFree(pointer); }

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
  void *memory = aligned_alloc(PAGE, round_up(size ? size : 1, PAGE));
  if (!memory) return fail(cudaErrorMemoryAllocation);
  lock();
  add(memory, size ? size : 1, PINNED);
  unlock();
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void *pointer) { return release(pointer, PINNED); }

cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags) {
  lock();
  size_t above = upper_bound(pointer);
  int overlaps = find_allocation(pointer) || (above < count && allocations[above].start < (char *)pointer + size);
  if (!overlaps) add(pointer, size, REGISTERED);
  unlock();
  return overlaps ? fail(cudaErrorHostMemoryAlreadyRegistered) : cudaSuccess;
}

cudaError_t cudaHostUnregister(void *pointer) {
  lock();
  int found = take(pointer, REGISTERED);
  unlock();
  return found ? cudaSuccess : fail(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  lock();
  *total = device_memory();
  *available = *total - used[current_device()];
  unlock();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
  memset(attributes, 0, sizeof *attributes);
  lock();
  const Allocation *a = find_allocation(pointer);
  Kind kind = a ? a->kind : PAGEABLE;
  attributes->device = a ? a->device : 0;
  unlock();
  attributes->type = kind == DEVICE     ? cudaMemoryTypeDevice
                     : kind == PAGEABLE ? cudaMemoryTypeUnregistered
                                        : cudaMemoryTypeHost;
  attributes->devicePointer = kind == PAGEABLE ? NULL : (void *)pointer;
  attributes->hostPointer = kind == DEVICE ? NULL : (void *)pointer;
  return cudaSuccess;
}
