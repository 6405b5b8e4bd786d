/* Functions of the runtime that torch links to and that no test of ours needs: graphs, memory pools, IPC. They say so
 * and fail. The headers are not included: the arguments do not matter. */
#include <stdio.h>

enum { NOT_SUPPORTED = 801 };

static int refuse(const char *name) {
  fprintf(stderr, "simulated GPU: %s is not there\n", name);
  return NOT_SUPPORTED;
}

#define REFUSED(name) \
  int name(void) { return refuse(#name); }

REFUSED(cudaDeviceEnablePeerAccess)
REFUSED(cudaDeviceGetDefaultMemPool)
REFUSED(cudaGetSymbolAddress)
REFUSED(cudaGraphDebugDotPrint)
REFUSED(cudaGraphDestroy)
REFUSED(cudaGraphExecDestroy)
REFUSED(cudaGraphGetNodes)
REFUSED(cudaGraphInstantiateWithFlags)
REFUSED(cudaGraphLaunch)
REFUSED(cudaGraphNodeGetDependencies)
REFUSED(cudaIpcCloseMemHandle)
REFUSED(cudaIpcGetEventHandle)
REFUSED(cudaIpcGetMemHandle)
REFUSED(cudaIpcOpenEventHandle)
REFUSED(cudaIpcOpenMemHandle)
REFUSED(cudaMemPoolGetAttribute)
REFUSED(cudaMemPoolSetAccess)
REFUSED(cudaMemPoolSetAttribute)
REFUSED(cudaMemPoolTrimTo)
REFUSED(cudaMemcpyToSymbol)
REFUSED(cudaStreamAddCallback)
REFUSED(cudaStreamBeginCapture)
REFUSED(cudaStreamEndCapture)
