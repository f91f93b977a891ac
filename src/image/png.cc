#include <png.h>

#include <csetjmp>
#include <cstring>

#include "image/codecs.h"
#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

// Members instead of local variables: a jump back leaves changed locals undefined.
class PngDecoder {
 public:
  explicit PngDecoder(std::string_view encoded) : encoded_(encoded) {}
  ~PngDecoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;

  Raster decode(const std::string& name) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, [](png_structp, png_const_charp) {});
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ == nullptr) throw std::bad_alloc();
    if (setjmp(back_) == 0) {
      run();
    } else {
      if (is_cut_) {
        throw_failure("{}: the PNG data ends too early ({} bytes); the file is cut off, fetch it again", name,
                      encoded_.size());
      }
      throw_failure("{}: the PNG data is damaged and cannot be decoded: {}", name, message_);
    }
    return to_raster();
  }

 private:
  static void on_error(png_structp png, png_const_charp message) {
    auto* self = static_cast<PngDecoder*>(png_get_error_ptr(png));
    std::strncpy(self->message_, message, sizeof self->message_ - 1);
    std::longjmp(self->back_, 1);
  }

  static void on_read(png_structp png, png_bytep to, std::size_t count) {
    auto* self = static_cast<PngDecoder*>(png_get_io_ptr(png));
    if (count > self->encoded_.size() - self->at_) {
      self->is_cut_ = true;
      png_error(png, "cut off");
    }
    std::memcpy(to, self->encoded_.data() + self->at_, count);
    self->at_ += count;
  }

  void run() {
    png_set_read_fn(png_, this, on_read);
    png_set_user_limits(png_, 0x7fffffff, 0x7fffffff);  // max_pixels was checked on the header
    png_read_info(png_, info_);
    png_set_expand(png_);    // palettes and few bits to 8, a transparent colour to alpha
    png_set_scale_16(png_);  // round(v / 257)
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    width_ = png_get_image_width(png_, info_);
    height_ = png_get_image_height(png_, info_);
    channels_ = png_get_channels(png_, info_);
    const std::size_t stride = png_get_rowbytes(png_, info_);
    pixels_.resize(stride * static_cast<std::size_t>(height_));
    rows_.resize(static_cast<std::size_t>(height_));
    for (std::size_t y = 0; y < rows_.size(); ++y) rows_[y] = pixels_.data() + y * stride;
    png_read_image(png_, rows_.data());
    png_read_end(png_, nullptr);
  }

  // Grey, grey and alpha, RGB or RGBA pixels -> planes; what is transparent shows black.
  Raster to_raster() {
    const bool alpha = channels_ == 2 || channels_ == 4;
    Raster raster{width_, height_, channels_ <= 2 ? 1 : 3, {}};
    if (channels_ == 1) {
      raster.pixels = std::move(pixels_);
      return raster;
    }
    raster.pixels.resize(static_cast<std::size_t>(width_ * height_ * raster.channels));
    const std::int64_t count = width_ * height_;
    for (std::int64_t c = 0; c < raster.channels; ++c) {
      std::uint8_t* out = raster.plane(c);
      const std::uint8_t* in = pixels_.data();
      for (std::int64_t i = 0; i < count; ++i, in += channels_)
        out[i] = alpha ? static_cast<std::uint8_t>((in[c] * in[channels_ - 1] + 127) / 255) : in[c];
    }
    return raster;
  }

  std::string_view encoded_;
  std::size_t at_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::jmp_buf back_;
  char message_[128] = {};
  bool is_cut_ = false;
  std::int64_t width_ = 0, height_ = 0, channels_ = 0;
  std::vector<std::uint8_t> pixels_;
  std::vector<png_bytep> rows_;
};

}  // namespace

Raster decode_png(std::string_view encoded, const std::string& name) { return PngDecoder(encoded).decode(name); }

}  // namespace thinkvg::image
