#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "thinkvg/image/picture_info.h"
#include "thinkvg/serve/backend.h"

namespace thinkvg::test {

// One id a byte; 256 ends an answer.
class ByteTokenizer final : public text::Tokenizer {
 public:
  static constexpr std::int64_t kEnd = 256;

  std::int64_t vocab_size() const override { return 257; }
  std::string decode(std::span<const std::int64_t> ids, bool keep_special) const override {
    std::string text;
    for (const std::int64_t id : ids) {
      if (id == kEnd)
        text += keep_special ? "<|end|>" : "";
      else
        text += static_cast<char>(id);
    }
    return text;
  }
  std::unique_ptr<text::StreamingDecoder> decode_stream(bool) const override { return nullptr; }
  std::optional<std::int64_t> find(std::string_view) const override { return std::nullopt; }
  std::string piece(std::int64_t id) const override { return decode(std::vector<std::int64_t>{id}, true); }
  std::string bytes(std::int64_t id, text::TextPlace) const override { return piece(id); }
  bool is_special(std::int64_t id) const override { return id == kEnd; }
  bool is_added(std::int64_t id) const override { return id == kEnd; }
  const std::vector<std::int64_t>& begin_ids() const override { return none_; }
  const std::vector<std::int64_t>& end_ids() const override { return none_; }
  std::optional<std::int64_t> named_token(std::string_view) const override { return std::nullopt; }

 protected:
  std::vector<std::int64_t> encode_valid(std::string_view text, text::TextPlace) const override {
    return {text.begin(), text.end()};
  }

 private:
  std::vector<std::int64_t> none_;
};

// What a radiograph may be said to show; boxes in the frame `thousand`.
inline constexpr const char* kRadiographAnswer =
    "<think>The trachea is midline. The cardiac silhouette (region [380, 480, 720, 800]) is enlarged, its width "
    "above "
    "half of the chest's. The right costophrenic angle (region [110, 790, 270, 880]) and the left costophrenic angle "
    "(region [730, 790, 880, 880]) are blunted, which speaks for small effusions on both sides. No consolidation is "
    "seen in the right upper lung zone (region [160, 130, 440, 340]).</think><response><answer>Cardiomegaly with "
    "small bilateral effusions</answer><location><ref>cardiac silhouette</ref><box>[380, 480, 720, 800]</box>"
    "<ref>right costophrenic angle</ref><box>[110, 790, 270, 880]</box><ref>left costophrenic angle</ref><box>[730, "
    "790, 880, 880]</box></location></response>";

// Writes `answer`, one byte a step, to all requests in turn. A "page" is used by each
// completion from submit() until its last event, so that a test sees what is left behind. The last text of the
// conversation may ask for something else:
//   refuse   submit() throws
//   break    on_error after 3 tokens
//   hold     nothing until cancelled
class FakeBackend final : public serve::ChatBackend {
 public:
  explicit FakeBackend(std::string answer, std::chrono::microseconds step = std::chrono::microseconds(0))
      : answer_(std::move(answer)), step_(step), thread_([this] { run(); }) {}
  ~FakeBackend() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  const text::Tokenizer& tokenizer() const override { return tokenizer_; }
  std::int64_t context_length() const override { return 4096; }

  serve::AcceptedChat submit(const serve::ChatRequest& request, std::uint64_t seed, serve::ChatEvents events) override {
    std::string said;
    for (const text::MessagePart& part : request.messages.back().parts) said += part.text;
    if (said.find("refuse") != std::string::npos) throw serve::invalid_request("the prompt is refused", "messages");
    serve::AcceptedChat accepted;
    accepted.prompt_tokens = static_cast<std::int64_t>(said.size());
    for (const serve::UploadedPicture& picture : request.pictures)
      accepted.pictures.push_back(
          {image::parse_picture_info(picture.bytes, picture.name).shown(), grounding::BoxFrame::thousand()});
    const std::lock_guard lock(mutex_);
    Running running{request,
                    seed,
                    std::move(events),
                    0,
                    said.find("hold") != std::string::npos,
                    said.find("break") != std::string::npos,
                    false};
    pages_ += request.num_completions;
    ++num_submitted_;
    last_request_ = request;
    accepted.ticket = ++last_ticket_;
    running_.emplace(accepted.ticket, std::move(running));
    changed_.notify_all();
    return accepted;
  }
  void cancel(std::uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    if (const auto found = running_.find(ticket); found != running_.end()) found->second.cancelled = true;
    changed_.notify_all();
  }
  serve::BackendLoad load() const override {
    const std::lock_guard lock(mutex_);
    serve::BackendLoad load;
    load.pages_used = pages_;
    load.pages_total = 1000;
    load.new_tokens = num_tokens_;
    return load;
  }

  std::int64_t num_submitted() const {
    const std::lock_guard lock(mutex_);
    return num_submitted_;
  }
  std::int64_t num_cancelled() const { return num_cancelled_; }
  serve::ChatRequest last_request() const {
    const std::lock_guard lock(mutex_);
    return last_request_;
  }
  // Whether all pages come back within some seconds.
  bool all_returned() const {
    for (int i = 0; i < 500; ++i) {
      if (load().pages_used == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

 private:
  struct Running {
    serve::ChatRequest request;
    std::uint64_t seed;
    serve::ChatEvents events;
    std::size_t position = 0;
    bool hold = false, breaks = false, cancelled = false;
  };

  // The answer up to the first stop text.
  std::string answer_to(const serve::ChatRequest& request) const {
    std::string answer = answer_;
    for (const std::string& stop : request.stop) answer = answer.substr(0, answer.find(stop));
    return answer;
  }

  void end(Running& running, serve::ChatFinish finish, const std::string& text) {
    for (std::int64_t g = 0; g < running.request.num_completions; ++g) running.events.on_finish(g, finish, text);
  }

  // One byte of all completions of a request. Returns whether it has ended.
  bool step(Running& running) {
    const std::string answer = answer_to(running.request);
    const auto limit = static_cast<std::size_t>(running.request.sampling.max_new_tokens);
    if (running.cancelled) {
      ++num_cancelled_;
      end(running, serve::ChatFinish::cancelled, answer.substr(0, running.position));
      return true;
    }
    if (running.hold) return false;
    if (running.breaks && running.position == 3) {
      running.events.on_error(std::make_exception_ptr(std::runtime_error("the device is out of memory")));
      return true;
    }
    if (running.position == answer.size() || running.position == limit) {
      end(running, running.position == answer.size() ? serve::ChatFinish::stop : serve::ChatFinish::length,
          answer.substr(0, running.position));
      return true;
    }
    const char c = answer[running.position++];
    for (std::int64_t g = 0; g < running.request.num_completions; ++g) {
      serve::ChatToken token;
      token.id = static_cast<unsigned char>(c);
      token.logprob = -0.5f;
      for (std::int64_t i = 0; i < running.request.top_logprobs; ++i)
        token.top.push_back({'a' + i, -0.5f - static_cast<float>(i)});
      token.text = std::string(1, c);
      running.events.on_token(g, std::move(token));
      ++num_tokens_;
    }
    return false;
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] {
        return stopping_ || std::any_of(running_.begin(), running_.end(),
                                        [](const auto& item) { return !item.second.hold || item.second.cancelled; });
      });
      if (stopping_) return;
      for (auto item = running_.begin(); item != running_.end();) {
        const std::int64_t pages = item->second.request.num_completions;
        const bool over = step(item->second);
        if (over) pages_ -= pages;
        item = over ? running_.erase(item) : std::next(item);
      }
      if (step_.count() > 0) {
        lock.unlock();
        std::this_thread::sleep_for(step_);
        lock.lock();
      }
    }
  }

  std::string answer_;
  std::chrono::microseconds step_;
  ByteTokenizer tokenizer_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Running> running_;
  std::uint64_t last_ticket_ = 0;
  std::int64_t pages_ = 0, num_submitted_ = 0, num_tokens_ = 0;
  std::atomic<std::int64_t> num_cancelled_{0};
  serve::ChatRequest last_request_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace thinkvg::test
