// synthesis_epilogue and its backward on the simulator, forms without a filter;
// tests/kernels/test_synthesis_epilogue.py.
#include "../cuda/synthesis_epilogue.cu"
#include "synthesis_epilogues.h"

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  fastinv::host::bind_simulator(m);
  fastinv::host::bind_synthesis_epilogues(m, fastinv::cuda::synthesis_epilogue,
                                          fastinv::cuda::synthesis_epilogue_backward);
}
