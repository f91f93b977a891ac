#pragma once

// Shape letters: I image tokens, D width.

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "thinkvg/generation/rollout_engine.h"
#include "thinkvg/models/image_encoder.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::generation {

// A conversation with its pictures, ready to be completed.
struct BuiltPrompt {
  text::Prompt prompt;
  std::vector<std::shared_ptr<const models::EncodedPicture>> pictures;  // one for each image part, in order

  // Frame of the boxes in the model's text, and size of the picture that they lie on: the first one's. Frame `original`
  // and 0 x 0 where there are no pictures.
  grounding::BoxFrame frame() const;
  grounding::ImageSize original() const;

  GenerationRequest request(std::int64_t num_completions, std::vector<std::uint64_t> stream) const;
};

// From conversations and the bytes of picture files to what engines take: the way of everything that is asked
// interactively, by `generate` and by the server. (Data sets, whose pictures are read ahead, come by QuestionBuilder.)
// Thread-safe: pictures are decoded by the calling thread, the vision tower takes one at a time. Features of the latest
// pictures are kept by content, so that a picture which is asked about again passes the tower once. The weights must
// not change while it lives.
class PromptBuilder {
 public:
  struct Options {
    image::ReadOptions read;
    std::int64_t feature_cache_mb = 512;
  };
  PromptBuilder(models::ModelBundle bundle, const Options& options);

  // `file`: a JPEG, PNG or DICOM file's bytes. Throws std::runtime_error naming `name` where it cannot be read.
  std::shared_ptr<const models::EncodedPicture> encode(std::string_view file, const std::string& name);
  // Throws std::invalid_argument where the messages have another number of image parts than there are pictures, or the
  // chat template refuses them.
  BuiltPrompt build(const std::vector<text::Message>& messages,
                    std::vector<std::shared_ptr<const models::EncodedPicture>> pictures) const;
  const models::ModelBundle& bundle() const { return bundle_; }

 private:
  struct Kept {
    std::shared_ptr<const models::EncodedPicture> picture;
    std::list<std::string>::iterator place;
  };
  std::shared_ptr<const models::EncodedPicture> find(const std::string& key);
  void keep(const std::string& key, const std::shared_ptr<const models::EncodedPicture>& picture);

  models::ModelBundle bundle_;
  Options options_;
  std::mutex tower_;
  std::mutex mutex_;  // of what follows
  std::unordered_map<std::string, Kept> kept_;
  std::list<std::string> order_;  // latest first
  std::int64_t bytes_ = 0;
};

// One user turn with `num_pictures` pictures before the question, behind a system line where there is one: how data
// sets are asked, too.
std::vector<text::Message> question_messages(const text::PromptOptions& options, const std::string& question,
                                             std::size_t num_pictures);

}  // namespace thinkvg::generation
