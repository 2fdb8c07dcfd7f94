// synthesis_epilogue and its backward on the simulator, forms with a filter; tests/kernels/test_fir_epilogue.py.
#include "../cuda/fir_epilogue.cu"
#include "synthesis_epilogues.h"

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  fastinv::host::bind_simulator(m);
  fastinv::host::bind_synthesis_epilogues(m, fastinv::cuda::fir_epilogue, fastinv::cuda::fir_epilogue_backward);
}
