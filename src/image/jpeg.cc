#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdio>

// libjpeg's header needs the two before it.
#include <jerror.h>
#include <jpeglib.h>

#include "image/codecs.h"
#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

// A small file may ask for any number of passes over a large picture.
constexpr int kMostScans = 500;

// Complaints that leave every pixel as it was meant.
bool is_harmless(int code) {
  return code == JWRN_EXTRANEOUS_DATA || code == JWRN_ADOBE_XFORM || code == JWRN_JFIF_MAJOR;
}

struct ErrorState {
  jpeg_error_mgr manager;
  std::jmp_buf back;
  char message[JMSG_LENGTH_MAX];
  bool is_cut;
};

[[noreturn]] void give_up(j_common_ptr info) {
  auto* state = reinterpret_cast<ErrorState*>(info->err);
  info->err->format_message(info, state->message);
  const int code = info->err->msg_code;
  state->is_cut =
      code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JERR_INPUT_EOF || code == JERR_INPUT_EMPTY;
  std::longjmp(state->back, 1);
}

void on_message(j_common_ptr info, int level) {
  if (level < 0 && !is_harmless(info->err->msg_code)) give_up(info);
}

void on_progress(j_common_ptr info) {
  auto* decoder = reinterpret_cast<j_decompress_ptr>(info);
  if (decoder->input_scan_number <= kMostScans) return;
  info->err->msg_code = JERR_BAD_PROGRESSION;
  give_up(info);
}

// Members instead of local variables: a jump back leaves changed locals undefined.
class JpegDecoder {
 public:
  JpegDecoder() {
    info_.err = jpeg_std_error(&error_.manager);
    error_.manager.error_exit = give_up;
    error_.manager.emit_message = on_message;
  }
  ~JpegDecoder() { jpeg_destroy_decompress(&info_); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  Raster decode(std::string_view encoded, const std::string& name, int reduction) {
    if (setjmp(error_.back) == 0) {
      run(encoded, reduction);
    } else {
      if (error_.is_cut) {
        throw_failure("{}: the JPEG data ends too early ({} bytes); the file is cut off, fetch it again", name,
                      encoded.size());
      }
      throw_failure("{}: the JPEG data is damaged and cannot be decoded: {}", name, error_.message);
    }
    return std::move(raster_);
  }

 private:
  void run(std::string_view encoded, int reduction) {
    jpeg_create_decompress(&info_);
    progress_.progress_monitor = on_progress;
    info_.progress = &progress_;
    jpeg_mem_src(&info_, reinterpret_cast<const unsigned char*>(encoded.data()), encoded.size());
    jpeg_read_header(&info_, TRUE);
    info_.scale_num = 1;
    info_.scale_denom = static_cast<unsigned>(reduction);
    info_.dct_method = JDCT_ISLOW;
    const bool four = info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK;
    info_.out_color_space = info_.jpeg_color_space == JCS_GRAYSCALE ? JCS_GRAYSCALE : four ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&info_);
    raster_.width = info_.output_width;
    raster_.height = info_.output_height;
    raster_.channels = info_.out_color_space == JCS_GRAYSCALE ? 1 : 3;
    raster_.pixels.resize(static_cast<std::size_t>(raster_.width * raster_.height * raster_.channels));
    if (raster_.channels == 1) {
      while (info_.output_scanline < info_.output_height) {
        for (std::int64_t i = 0; i < kRows; ++i)
          rows_[i] = raster_.pixels.data() +
                     std::min<std::int64_t>(info_.output_scanline + i, raster_.height - 1) * raster_.width;
        jpeg_read_scanlines(&info_, rows_, std::min<JDIMENSION>(kRows, info_.output_height - info_.output_scanline));
      }
    } else {
      line_.resize(static_cast<std::size_t>(raster_.width) * static_cast<std::size_t>(info_.output_components));
      rows_[0] = line_.data();
      while (info_.output_scanline < info_.output_height) {
        const std::int64_t y = info_.output_scanline;
        jpeg_read_scanlines(&info_, rows_, 1);
        if (four)
          store_cmyk(y);
        else
          store_rgb(y);
      }
    }
    jpeg_finish_decompress(&info_);
  }

  void store_rgb(std::int64_t y) {
    std::uint8_t* red = raster_.plane(0) + y * raster_.width;
    std::uint8_t* green = raster_.plane(1) + y * raster_.width;
    std::uint8_t* blue = raster_.plane(2) + y * raster_.width;
    const std::uint8_t* in = line_.data();
    for (std::int64_t x = 0; x < raster_.width; ++x, in += 3) {
      red[x] = in[0];
      green[x] = in[1];
      blue[x] = in[2];
    }
  }

  // Ink to light as Pillow does it; Adobe's files hold the inverse of the ink.
  void store_cmyk(std::int64_t y) {
    const std::uint8_t* in = line_.data();
    const int flip = info_.saw_Adobe_marker ? 255 : 0;
    for (std::int64_t x = 0; x < raster_.width; ++x, in += 4) {
      const int light = 255 - (in[3] ^ flip);
      for (std::int64_t c = 0; c < 3; ++c) {
        const int product = (in[c] ^ flip) * light + 128;
        raster_.plane(c)[y * raster_.width + x] =
            static_cast<std::uint8_t>(std::max(0, light - ((product + (product >> 8)) >> 8)));
      }
    }
  }

  static constexpr std::int64_t kRows = 8;
  jpeg_decompress_struct info_{};
  jpeg_progress_mgr progress_{};
  ErrorState error_{};
  Raster raster_;
  std::vector<std::uint8_t> line_;
  JSAMPROW rows_[kRows] = {};
};

}  // namespace

Raster decode_jpeg(std::string_view encoded, const std::string& name, int reduction) {
  return JpegDecoder().decode(encoded, name, reduction);
}

}  // namespace thinkvg::image
