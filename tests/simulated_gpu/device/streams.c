/* Streams, events and copies. A copy is queued, and happens when something waits for it: the host, a kernel on its
 * stream, or another stream through an event. So whoever forgets to wait reads what was there before.
 *
 * A copy from pageable memory reads it at once, as CUDA does through its staging buffer; one into pageable memory is
 * complete when the call returns. A query is answered "not ready" once while work is queued, and performs it after that.
 * Streams that synchronize with the default stream (cudaStreamCreate without cudaStreamNonBlocking) do all at once. */
#include "runtime.h"
#include <stdlib.h>
#include <string.h>

typedef struct CUstream_st Stream;
typedef struct Operation {
  enum { COPY, FILL, WAIT, CALL } what;
  char *to;
  const char *from;
  void *staged; /* a copy of pageable memory, or NULL */
  size_t width, height, to_pitch, from_pitch;
  int value;
  Stream *other; /* WAIT: until that stream has done so many operations */
  unsigned long position;
  cudaHostFn_t function;
  void *argument;
  struct Operation *next;
} Operation;

struct CUstream_st {
  int device, immediate, asked;
  Operation *first, *last;
  unsigned long queued, done;
};

struct CUevent_st {
  Stream *stream;
  unsigned long position;
  int asked;
};

static Stream defaults[MAX_DEVICES];
static Stream **created; /* never freed: an event may outlive its stream */
static size_t streams;

/* The stream of a handle: 0, cudaStreamLegacy (1) and cudaStreamPerThread (2) are the current device's default. */
static Stream *resolve(cudaStream_t handle) {
  return (size_t)handle <= 2 ? &defaults[current_device()] : handle;
}

static void run_until(Stream *stream, unsigned long position);

static void perform(Operation *o) {
  switch (o->what) {
    case COPY:
      for (size_t row = 0; row < o->height; row++)
        memmove(o->to + row * o->to_pitch, (o->staged ? (char *)o->staged : o->from) + row * o->from_pitch, o->width);
      break;
    case FILL: memset(o->to, o->value, o->width); break;
    case WAIT: run_until(o->other, o->position); break;
    case CALL: o->function(o->argument); break;
  }
}

static void run_until(Stream *stream, unsigned long position) {
  while (stream->done < position && stream->first) {
    Operation *o = stream->first;
    stream->first = o->next;
    if (!o->next) stream->last = NULL;
    stream->done++;
    perform(o);
    free(o->staged);
    free(o);
  }
}

static void run(Stream *stream) { run_until(stream, stream->queued); }

void run_everything(void) {
  for (int i = 0; i < MAX_DEVICES; i++) run(&defaults[i]);
  for (size_t i = 0; i < streams; i++) run(created[i]);
}

static void queue(Stream *stream, Operation given) {
  Operation *o = malloc(sizeof *o);
  *o = given;
  o->next = NULL;
  if (stream->last) stream->last->next = o;
  else stream->first = o;
  stream->last = o;
  stream->queued++;
  stream->asked = 0;
  if (stream->immediate) run(stream);
}

/* Copies and fills */

/* Whether so many bytes lie in one allocation, or in pageable memory. */
static int is_inside(const Allocation *a, const void *address, size_t size) {
  return !a || (const char *)address + size <= a->start + a->size;
}

static cudaError_t copy(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                        cudaStream_t handle) {
  if (!width || !height) return cudaSuccess;
  lock();
  const Allocation *target = find_allocation(to), *source = find_allocation(from);
  int fits = is_inside(target, to, to_pitch * (height - 1) + width) &&
             is_inside(source, from, from_pitch * (height - 1) + width);
  if (fits) {
    Stream *stream = resolve(handle);
    Operation o = {.what = COPY, .to = to, .from = from, .width = width, .height = height, .to_pitch = to_pitch,
                   .from_pitch = from_pitch};
    if (!source) {
      size_t size = from_pitch * (height - 1) + width;
      o.staged = memcpy(malloc(size), from, size);
    }
    queue(stream, o);
    if (!target) run(stream);
  }
  unlock();
  return fits ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, size, from, size, size, 1, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  cudaError_t error = copy(to, size, from, size, size, 1, NULL);
  return error ? error : cudaStreamSynchronize(NULL);
}

cudaError_t cudaMemcpyPeerAsync(void *to, int device, const void *from, int source, size_t size, cudaStream_t stream) {
  lock();
  const Allocation *a = find_allocation(to), *b = find_allocation(from);
  int match = a && b && a->device == device && b->device == source;
  unlock();
  return match ? copy(to, size, from, size, size, 1, stream) : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(to, to_pitch, from, from_pitch, width, height, stream);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
  lock();
  int fits = is_inside(find_allocation(to), to, size);
  if (fits) queue(resolve(stream), (Operation){.what = FILL, .to = to, .value = value, .width = size});
  unlock();
  return fits ? cudaSuccess : fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }

/* Streams */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int priority) {
  Stream *stream = calloc(1, sizeof *stream);
  stream->device = current_device();
  stream->immediate = !(flags & cudaStreamNonBlocking);
  lock();
  created = realloc(created, (streams + 1) * sizeof *created);
  created[streams++] = stream;
  unlock();
  *handle = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t handle) { return cudaStreamSynchronize(handle); }

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  lock();
  run(resolve(handle));
  unlock();
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
  int device = current_device();
  lock();
  run(&defaults[device]);
  for (size_t i = 0; i < streams; i++)
    if (created[i]->device == device) run(created[i]);
  unlock();
  return cudaSuccess;
}

/* Answers a query of whether a stream has done so many operations; `asked` remembers that it was answered before. */
static cudaError_t query(Stream *stream, unsigned long position, int *asked) {
  if (stream->done >= position) return cudaSuccess;
  if (!*asked) {
    *asked = 1;
    return cudaErrorNotReady;
  }
  run_until(stream, position);
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  lock();
  Stream *stream = resolve(handle);
  cudaError_t error = query(stream, stream->queued, &stream->asked);
  unlock();
  return fail(error);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *argument) {
  lock();
  queue(resolve(handle), (Operation){.what = CALL, .function = function, .argument = argument});
  unlock();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (number) *number = 0;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

/* Events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = calloc(1, sizeof **event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  lock();
  event->stream = resolve(handle);
  event->position = event->stream->queued;
  event->asked = 0;
  unlock();
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  lock();
  if (event->stream) run_until(event->stream, event->position);
  unlock();
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  lock();
  cudaError_t error = event->stream ? query(event->stream, event->position, &event->asked) : cudaSuccess;
  unlock();
  return fail(error);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  lock();
  if (event->stream && event->stream->done < event->position)
    queue(resolve(handle), (Operation){.what = WAIT, .other = event->stream, .position = event->position});
  unlock();
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 0;
  return cudaSuccess;
}
