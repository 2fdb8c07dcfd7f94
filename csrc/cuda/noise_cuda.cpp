// The noise regulariser and the normalisation of noise maps on CUDA: checks, outputs, scratch, launch, registration.
#include "noise.h"
#include "torch_cuda.h"

namespace fastinv {
namespace {

// All maps, dense, on one device and of one dtype; the first leads.
std::vector<Tensor> checked_maps(const char* op, const std::vector<Tensor>& maps) {
  FASTINV_CHECK(!maps.empty() && maps.size() <= cuda::kNoiseMaps, op, ": needs 1 to ", cuda::kNoiseMaps, " maps, got ",
                maps.size());
  const Tensor& leader = maps[0];
  const ScalarType dtype = leader.scalar_type();
  FASTINV_CHECK(on_cuda(leader), op, ": maps must be on a CUDA device");
  FASTINV_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                ": maps must be float32 or float64, got ", torch::headeronly::toString(dtype));
  std::vector<Tensor> dense;
  for (const Tensor& map : maps) {
    const std::vector<int64_t> sizes = sizes_of(map);
    FASTINV_CHECK(sizes.size() == 4 && sizes[1] == 1 && sizes[2] == sizes[3] && sizes[2] > 0, op,
                  ": maps must be [N or 1, 1, R, R], got ", to_string(sizes));
    FASTINV_CHECK(sizes[2] <= cuda::kLargestNoise && map.numel() <= int64_t(1) << 40, op, ": maps of at most ",
                  cuda::kLargestNoise, "x", cuda::kLargestNoise, ", got ", to_string(sizes));
    dense.push_back(cuda_operand(op, "map", map, leader, dtype, sizes));
  }
  return dense;
}

cuda::NoiseParams noise_params(const char* op, const std::vector<Tensor>& maps) {
  cuda::NoiseParams p{};
  p.dtype = cuda_dtype(op, maps[0].scalar_type());
  p.count = static_cast<int>(maps.size());
  int64_t samples = 1, blocks = 0;
  for (const Tensor& map : maps) samples = map.size(0) == 1 ? samples : map.size(0);
  for (size_t i = 0; i < maps.size(); ++i) {
    FASTINV_CHECK(maps[i].size(0) == samples || maps[i].size(0) == 1, op, ": maps must have ", samples,
                  " samples or 1, got ", maps[i].size(0));
    const int64_t tiles = maps[i].size(2) / cuda::kNoiseTile + 1;
    blocks += 2 * maps[i].size(0) * tiles * tiles;
    p.maps[i].map = maps[i].const_data_ptr();
    p.maps[i].size = static_cast<int>(maps[i].size(2));
    p.maps[i].samples = static_cast<int>(maps[i].size(0));
  }
  FASTINV_CHECK(blocks < int64_t(1) << 30, op, ": the batch of ", samples, " is too large; use smaller batches");
  p.samples = static_cast<int>(samples);
  return p;
}

std::tuple<Tensor, Tensor, Tensor> noise_regularization_cuda(std::vector<Tensor> maps) {
  const char* op = "noise_regularization";
  FASTINV_CHECK(!maps.empty() && on_cuda(maps[0]), op, ": needs maps on a CUDA device");
  const DeviceGuard guard = device_guard("noise_regularization", maps[0]);
  maps = checked_maps(op, maps);
  cuda::NoiseParams p = noise_params(op, maps);
  const cuda::NoiseSizes sizes = cuda::noise_layout(p);
  const ScalarType dtype = maps[0].scalar_type();
  Tensor value = cuda_empty({p.samples}, dtype, maps[0]);
  Tensor means = cuda_empty({sizes.means, 2}, ScalarType::Double, maps[0]);
  Tensor pyramid = cuda_empty({sizes.pyramid}, dtype, maps[0]);
  Tensor partials = cuda_empty({sizes.partials, 2}, ScalarType::Double, maps[0]);
  p.value = value.mutable_data_ptr();
  p.means = mutable_data<double>(means);
  p.pyramid = pyramid.mutable_data_ptr();
  p.partials = mutable_data<double>(partials);
  check_launch(op, cuda::noise_regularization(p, cuda_stream_of(maps[0])));
  return {value, means, pyramid};
}

std::vector<Tensor> noise_regularization_backward_cuda(const Tensor& dvalue_any, std::vector<Tensor> maps,
                                                       const Tensor& means_any, const Tensor& pyramid_any) {
  const char* op = "noise_regularization_backward";
  FASTINV_CHECK(!maps.empty() && on_cuda(maps[0]), op, ": needs maps on a CUDA device");
  const DeviceGuard guard = device_guard("noise_regularization_backward", maps[0]);
  maps = checked_maps(op, maps);
  cuda::NoiseParams p = noise_params(op, maps);
  const cuda::NoiseSizes sizes = cuda::noise_layout(p);
  const ScalarType dtype = maps[0].scalar_type();
  const Tensor dvalue = cuda_operand(op, "dvalue", dvalue_any, maps[0], dtype, {p.samples});
  Tensor means = cuda_operand(op, "means", means_any, maps[0], ScalarType::Double, {sizes.means, 2});
  Tensor pyramid = cuda_operand(op, "pyramid", pyramid_any, maps[0], dtype, {sizes.pyramid});
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < maps.size(); ++i) {
    gradients.push_back(cuda_empty(sizes_of(maps[i]), dtype, maps[0]));
    p.maps[i].gradient = gradients[i].mutable_data_ptr();
    if (p.samples == 0) torch::stable::fill_(gradients[i], 0.0);  // of maps that no sample has
  }
  if (p.samples == 0) return gradients;
  p.dvalue = dvalue.const_data_ptr();
  p.means = mutable_data<double>(means);  // read only
  p.pyramid = pyramid.mutable_data_ptr();
  check_launch(op, cuda::noise_regularization_backward(p, cuda_stream_of(maps[0])));
  return gradients;
}

void normalize_noise_cuda(std::vector<Tensor> maps) {
  const char* op = "normalize_noise_";
  FASTINV_CHECK(!maps.empty() && on_cuda(maps[0]), op, ": needs maps on a CUDA device");
  const DeviceGuard guard = device_guard("normalize_noise_", maps[0]);
  for (const Tensor& map : maps) {
    FASTINV_CHECK(map.is_contiguous(), op, ": maps must be contiguous, they are changed in place");
  }
  maps = checked_maps(op, maps);
  cuda::NormalizeNoiseParams p{};
  p.dtype = cuda_dtype(op, maps[0].scalar_type());
  p.count = static_cast<int>(maps.size());
  for (size_t i = 0; i < maps.size(); ++i) {
    p.maps[i] = maps[i].mutable_data_ptr();
    p.samples[i] = maps[i].size(0);
    p.elements[i] = maps[i].size(2) * maps[i].size(3);
  }
  const int64_t tiles = cuda::normalize_noise_partials(p);
  FASTINV_CHECK(tiles < int64_t(1) << 30, op, ": the batch of ", maps[0].size(0), " is too large; use smaller batches");
  Tensor partials = cuda_empty({tiles, 2}, ScalarType::Double, maps[0]);
  p.partials = mutable_data<double>(partials);
  check_launch(op, cuda::normalize_noise(p, cuda_stream_of(maps[0])));
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, FASTINV_CUDA_KEY, m) {
  m.impl("noise_regularization", TORCH_BOX(&fastinv::noise_regularization_cuda));
  m.impl("noise_regularization_backward", TORCH_BOX(&fastinv::noise_regularization_backward_cuda));
  m.impl("normalize_noise_", TORCH_BOX(&fastinv::normalize_noise_cuda));
}
