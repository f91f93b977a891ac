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

// Rows that are handed over together: whole rows of blocks, few enough to stay in the cache.
constexpr std::int64_t kRowsTogether = 32;

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

  void decode(const EncodedJpeg& jpeg, RowSink& sink) {
    if (setjmp(error_.back) == 0) {
      run(jpeg, sink);
      return;
    }
    if (error_.is_cut) {
      throw_failure("{}: the JPEG data ends too early ({} bytes); the file is cut off, fetch it again", jpeg.name,
                    jpeg.bytes.size());
    }
    throw_failure("{}: the JPEG data is damaged and cannot be decoded: {}", jpeg.name, error_.message);
  }

 private:
  // Not inlined, so that no local of it is one of the function that is jumped back to.
  [[gnu::noinline]] void run(const EncodedJpeg& jpeg, RowSink& sink) {
    jpeg_create_decompress(&info_);
    progress_.progress_monitor = on_progress;
    info_.progress = &progress_;
    jpeg_mem_src(&info_, reinterpret_cast<const unsigned char*>(jpeg.bytes.data()), jpeg.bytes.size());
    jpeg_read_header(&info_, TRUE);
    info_.scale_num = 1;
    info_.scale_denom = static_cast<unsigned>(jpeg.reduction);
    info_.dct_method = JDCT_ISLOW;
    const bool grey = info_.jpeg_color_space == JCS_GRAYSCALE;
    four_ = info_.jpeg_color_space == JCS_CMYK || info_.jpeg_color_space == JCS_YCCK;
    info_.out_color_space = grey ? JCS_GRAYSCALE : four_ ? JCS_CMYK : JCS_RGB;
    // The one component of a grey picture is the picture: the transform may write its rows where they are wanted.
    const std::int64_t block_rows = std::int64_t{info_.comp_info[0].v_samp_factor} * DCTSIZE;
    const bool raw = grey && info_.num_components == 1 && jpeg.reduction == 1 && kRowsTogether % block_rows == 0;
    info_.raw_data_out = raw ? TRUE : FALSE;
    jpeg_start_decompress(&info_);
    width_ = info_.output_width;
    stride_ = raw ? std::int64_t{info_.comp_info[0].width_in_blocks} * DCTSIZE : width_;
    const std::int64_t height = info_.output_height, channels = grey ? 1 : 3;
    sink.start({width_, height}, channels);
    strip_.resize(static_cast<std::size_t>(channels * kRowsTogether * stride_));
    line_.resize(static_cast<std::size_t>(width_ * info_.output_components));
    for (std::int64_t top = 0; top < height; top += kRowsTogether) {
      const std::int64_t count = std::min(kRowsTogether, height - top);
      for (std::int64_t y = 0; y < count;) {
        if (raw) {
          point_at(y, block_rows);
          JSAMPARRAY component = rows_;
          y += jpeg_read_raw_data(&info_, &component, static_cast<JDIMENSION>(block_rows));
        } else if (grey) {
          point_at(y, count - y);
          y += jpeg_read_scanlines(&info_, rows_, static_cast<JDIMENSION>(count - y));
        } else {
          rows_[0] = line_.data();
          jpeg_read_scanlines(&info_, rows_, 1);
          if (four_)
            store_cmyk(y);
          else
            store_rgb(y);
          ++y;
        }
      }
      for (std::int64_t c = 0; c < channels; ++c) sink.take(c, {row(c, 0), stride_, count});
    }
    jpeg_finish_decompress(&info_);
  }

  std::uint8_t* row(std::int64_t channel, std::int64_t y) {
    return strip_.data() + (channel * kRowsTogether + y) * stride_;
  }

  void point_at(std::int64_t y, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) rows_[i] = row(0, y + i);
  }

  void store_rgb(std::int64_t y) {
    std::uint8_t *red = row(0, y), *green = row(1, y), *blue = row(2, y);
    const std::uint8_t* in = line_.data();
    for (std::int64_t x = 0; x < width_; ++x, in += 3) {
      red[x] = in[0];
      green[x] = in[1];
      blue[x] = in[2];
    }
  }

  // Ink to light as Pillow does it; Adobe's files hold the inverse of the ink.
  void store_cmyk(std::int64_t y) {
    const std::uint8_t* in = line_.data();
    const int flip = info_.saw_Adobe_marker ? 255 : 0;
    for (std::int64_t x = 0; x < width_; ++x, in += 4) {
      const int light = 255 - (in[3] ^ flip);
      for (std::int64_t c = 0; c < 3; ++c) {
        const int product = (in[c] ^ flip) * light + 128;
        row(c, y)[x] = static_cast<std::uint8_t>(std::max(0, light - ((product + (product >> 8)) >> 8)));
      }
    }
  }

  jpeg_decompress_struct info_{};
  jpeg_progress_mgr progress_{};
  ErrorState error_{};
  bool four_ = false;
  std::int64_t width_ = 0, stride_ = 0;
  std::vector<std::uint8_t> strip_;  // kRowsTogether rows a channel
  std::vector<std::uint8_t> line_;
  JSAMPROW rows_[kRowsTogether] = {};
};

}  // namespace

void decode_jpeg(const EncodedJpeg& jpeg, RowSink& sink) { JpegDecoder().decode(jpeg, sink); }

}  // namespace thinkvg::image
