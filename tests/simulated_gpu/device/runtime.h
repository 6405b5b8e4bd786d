/* What the files of the simulated CUDA runtime share: devices are parts of the host's memory, streams are queues.
 *
 * Settings, read from the environment once: SIMULATED_GPU_COUNT (1 to 8), SIMULATED_GPU_MEMORY (bytes of each device),
 * SIMULATED_GPU_CAPABILITY (80, 90, ...). */
#pragma once
#include <cuda_runtime_api.h>
#include <stddef.h>

enum { MAX_DEVICES = 8 };

/* What an address belongs to. */
typedef enum { PAGEABLE, DEVICE, PINNED, REGISTERED } Kind;
typedef struct {
  char *start;
  size_t size;
  Kind kind;
  int device; /* that allocated or registered it */
} Allocation;

/* One lock over all state. It is recursive: a queued host function may come back. */
void lock(void);
void unlock(void);

int device_count(void);
size_t device_memory(void);
int compute_capability(void);
int current_device(void);

/* Records the error for cudaGetLastError and returns it. */
cudaError_t fail(cudaError_t error);

/* The allocation that holds an address, or NULL. Under the lock. */
const Allocation *find_allocation(const void *address);

/* Runs all that is queued on every stream. Under the lock. */
void run_everything(void);
