// The LPIPS passes as a test module: tests/kernels/test_perceptual.py.
#include "../cuda/perceptual.cu"
#include "bindings.h"

namespace cuda = fastinv::cuda;
namespace host = fastinv::host;

// images [n, 3, H, W] of any strides; features [n, h, w, channels], dense.
static cuda::PerceptualInputParams input_params(const py::array& images, const py::array& features,
                                                const std::vector<double>& scale, const std::vector<double>& offset) {
  cuda::PerceptualInputParams p{};
  p.image_dtype = host::dtype_of(images, "images");
  p.dtype = host::dtype_of(features, "features");
  p.n = images.shape(0);
  p.image_height = static_cast<int>(images.shape(2));
  p.image_width = static_cast<int>(images.shape(3));
  p.height = static_cast<int>(features.shape(1));
  p.width = static_cast<int>(features.shape(2));
  p.channels = static_cast<int>(features.shape(3));
  for (int i = 0; i < 4; ++i) p.strides[i] = images.strides(i) / images.itemsize();
  for (int i = 0; i < 3; ++i) {
    p.scale[i] = scale[i];
    p.offset[i] = offset[i];
  }
  return p;
}

static cuda::PerceptualStageParams stage_params(const py::array& features) {
  cuda::PerceptualStageParams p{};
  p.dtype = host::dtype_of(features, "features");
  p.n = features.shape(0);
  p.height = static_cast<int>(features.shape(1));
  p.width = static_cast<int>(features.shape(2));
  p.channels = static_cast<int>(features.shape(3));
  return p;
}

static cuda::Dtype compute_dtype(cuda::Dtype dtype) {
  return dtype == cuda::Dtype::float64 ? dtype : cuda::Dtype::float32;
}

PYBIND11_MODULE(FASTINV_HOST_MODULE, m) {
  host::bind_simulator(m);
  m.def("perceptual_blocks", [](py::array features) {
    const cuda::PerceptualStageParams p = stage_params(features);
    return cuda::perceptual_blocks(p.dtype, p.channels, p.height, p.width);
  });
  m.def("perceptual_input",
        [](py::array images, std::vector<double> scale, std::vector<double> offset, py::array features) {
          host::Arrays arrays;
          cuda::PerceptualInputParams p = input_params(images, features, scale, offset);
          p.images = const_cast<void*>(arrays.input(images, p.image_dtype, "images"));
          p.features = arrays.output(features, p.dtype, "features");
          host::check(cuda::perceptual_input(p, nullptr));
        });
  m.def("perceptual_input_backward",
        [](py::array grad, py::array grad_value, std::vector<double> scale, py::array images) {
          host::Arrays arrays;
          cuda::PerceptualInputParams p = input_params(images, grad, scale, {0, 0, 0});
          p.images = arrays.output(images, p.image_dtype, "images");
          p.features = const_cast<void*>(arrays.input(grad, p.dtype, "grad"));
          p.grad_value = arrays.input(grad_value, compute_dtype(p.dtype), "grad_value");
          host::check(cuda::perceptual_input_backward(p, nullptr));
        });
  m.def("perceptual_stage", [](py::array u, py::array bias, std::optional<py::array> head,
                               std::optional<py::array> target, std::optional<py::array> target_inverse,
                               std::optional<py::array> pixel_weight, py::array h, std::optional<py::array> pooled,
                               py::array inverse, std::optional<py::array> slope, std::optional<py::array> partial) {
    host::Arrays arrays;
    cuda::PerceptualStageParams p = stage_params(u);
    const cuda::Dtype compute = compute_dtype(p.dtype);
    p.u = arrays.input(u, p.dtype, "u");
    p.bias = arrays.input(bias, p.dtype, "bias");
    p.head = arrays.input(head, compute, "head");
    p.target = arrays.input(target, p.dtype, "target");
    p.target_inverse = arrays.input(target_inverse, compute, "target_inverse");
    p.pixel_weight = arrays.input(pixel_weight, compute, "pixel_weight");
    p.h = arrays.output(h, p.dtype, "h");
    p.pooled = arrays.output(pooled, p.dtype, "pooled");
    p.inverse = arrays.output(inverse, compute, "inverse");
    p.slope = arrays.output(slope, compute, "slope");
    p.partial = arrays.output(partial, compute, "partial");
    host::check(cuda::perceptual_stage(p, nullptr));
  });
  m.def("perceptual_stage_backward",
        [](py::array h, py::array inverse, py::array slope, py::array head, py::array target, py::array target_inverse,
           std::optional<py::array> pixel_weight, py::array grad_value, std::optional<py::array> grad_pooled,
           py::array grad) {
          host::Arrays arrays;
          cuda::PerceptualStageParams p = stage_params(h);
          const cuda::Dtype compute = compute_dtype(p.dtype);
          p.h = const_cast<void*>(arrays.input(h, p.dtype, "h"));
          p.inverse = const_cast<void*>(arrays.input(inverse, compute, "inverse"));
          p.slope = const_cast<void*>(arrays.input(slope, compute, "slope"));
          p.head = arrays.input(head, compute, "head");
          p.target = arrays.input(target, p.dtype, "target");
          p.target_inverse = arrays.input(target_inverse, compute, "target_inverse");
          p.pixel_weight = arrays.input(pixel_weight, compute, "pixel_weight");
          p.grad_value = arrays.input(grad_value, compute, "grad_value");
          p.grad_pooled = arrays.input(grad_pooled, p.dtype, "grad_pooled");
          p.grad = arrays.output(grad, p.dtype, "grad");
          host::check(cuda::perceptual_stage_backward(p, nullptr));
        });
  m.def("perceptual_sum", [](std::vector<py::array> partials, py::array values) {
    host::Arrays arrays;
    cuda::PerceptualSumParams p{};
    p.dtype = host::dtype_of(values, "values");
    p.n = values.shape(0);
    p.count = static_cast<int>(partials.size());
    for (int i = 0; i < p.count; ++i) {
      p.partials[i] = arrays.input(partials[i], p.dtype, "partials");
      p.columns[i] = partials[i].shape(1);
    }
    p.values = arrays.output(values, p.dtype, "values");
    host::check(cuda::perceptual_sum(p, nullptr));
  });
}
