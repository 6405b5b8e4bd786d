/* A libcuda with what torch asks of it: whether a device has a context. Every function that its just-in-time compiler
 * links to (libcaffe2_nvrtc) must exist; those for modules and launches fail. */
enum { SUCCESS = 0, NOT_SUPPORTED = 801 };

static void *const context = (void *)16; /* any address but 0 */

int cuInit(unsigned flags) { return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, SUCCESS; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = 0, SUCCESS; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, SUCCESS; }
int cuDevicePrimaryCtxRetain(void **out, int device) { return *out = context, SUCCESS; }
int cuCtxGetCurrent(void **out) { return *out = context, SUCCESS; }
int cuCtxSetCurrent(void *given) { return SUCCESS; }
int cuGetErrorString(int error, const char **text) { return *text = "error of the simulated driver", SUCCESS; }

#define REFUSED(name) \
  int name(void) { return NOT_SUPPORTED; }

REFUSED(cuFuncGetAttribute)
REFUSED(cuFuncSetAttribute)
REFUSED(cuFuncSetCacheConfig)
REFUSED(cuLaunchCooperativeKernel)
REFUSED(cuLaunchKernel)
REFUSED(cuLinkAddData_v2)
REFUSED(cuLinkComplete)
REFUSED(cuLinkCreate_v2)
REFUSED(cuModuleGetFunction)
REFUSED(cuModuleLoad)
REFUSED(cuModuleLoadData)
REFUSED(cuModuleLoadDataEx)
REFUSED(cuModuleUnload)
REFUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
REFUSED(cuPointerGetAttribute)
REFUSED(cuTensorMapEncodeTiled)
