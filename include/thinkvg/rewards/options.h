#pragma once

#include <cstdint>
#include <string>

#include "thinkvg/core/settings.h"

namespace thinkvg::rewards {

// What to do with a completion when whoever is to score it (a judge, a program) cannot.
struct FailurePolicy {
  std::string on_failure = "skip";
  double fallback = 0;

  void visit(SettingsVisitor& v) {
    v.setting("on_failure", on_failure,
              "When it cannot score: skip (not applicable, the reason says why), fallback (take the value below), or "
              "stop (end the run with an error).");
    v.setting("fallback", fallback, "The value under on_failure: fallback.");
  }
  // Throws std::invalid_argument, naming the settings below `section`.
  void check(const char* section) const;
};

// A judge model: an OpenAI-compatible server and how to treat it, or a model of one's own.
struct JudgeOptions {
  std::string url;
  std::string model;
  std::string api_key_env = "OPENAI_API_KEY";
  std::string prompt = "configs/judge/semantic.yaml";
  std::string cache;
  bool swap = true;
  double max_difference = 2;
  std::int64_t parse_attempts = 2;
  double temperature = 0;
  std::int64_t max_tokens = 512;
  std::string extra;
  std::int64_t concurrency = 16;
  double timeout = 60;
  double batch_timeout = 600;
  std::int64_t max_retries = 5;
  double backoff = 0.5;
  double max_backoff = 30;
  double max_requests_per_minute = 0;
  double max_tokens_per_minute = 0;
  double max_cost = 0;
  double price_in = 0;
  double price_out = 0;
  std::string ca_file;
  FailurePolicy failure;

  void visit(SettingsVisitor& v) {
    v.setting(
        "url", url,
        "Base URL of the server, such as http://127.0.0.1:8000/v1; local: the model folder judge.model is loaded; "
        "empty: the cache alone answers.");
    v.setting("model", model, "Name of the judge model, as the server knows it; with url: local its folder.");
    v.setting("api_key_env", api_key_env, "Environment variable that holds the key; sent where it is set.");
    v.setting("prompt", prompt, "YAML file with the texts `system` and `user` that the judge is given.");
    v.setting("cache", cache, "File of JSON lines that keeps every reply, and answers again from it; empty: none.");
    v.setting("swap", swap, "Ask twice, with the two answers in either order, and take the mean of the scores.");
    v.setting("max_difference", max_difference, "Reward 1 when the two scores differ by less than this.");
    v.setting("parse_attempts", parse_attempts, "How often a question is put until the reply holds two scores.");
    v.setting("temperature", temperature, "Sampling temperature of the judge.");
    v.setting("max_tokens", max_tokens, "Longest reply, in tokens.");
    v.setting("extra", extra,
              "JSON object of further fields of the request; a null takes one out, such as {\"temperature\": null}.");
    v.setting("concurrency", concurrency, "Requests under way at once.");
    v.setting("timeout", timeout, "Seconds until one request is given up.");
    v.setting("batch_timeout", batch_timeout, "Seconds until the open requests of one batch are given up.");
    v.setting("max_retries", max_retries, "Further tries after a time-out, a broken connection, 408, 429 or 5xx.");
    v.setting("backoff", backoff, "Seconds before the first further try; doubled each time, with jitter.");
    v.setting("max_backoff", max_backoff, "Longest such pause; a server's Retry-After is honoured beyond it.");
    v.setting("max_requests_per_minute", max_requests_per_minute, "Rate limit; 0: none.");
    v.setting("max_tokens_per_minute", max_tokens_per_minute, "Rate limit of prompt and reply tokens; 0: none.");
    v.setting("max_cost", max_cost, "No further requests once this run's replies have cost so much; 0: no limit.");
    v.setting("price_in", price_in, "Price of a million prompt tokens.");
    v.setting("price_out", price_out, "Price of a million reply tokens.");
    v.setting("ca_file", ca_file, "Certificates to trust, for https; empty: the system's.");
    failure.visit(v);
  }
  // Whether a judge is named at all.
  bool is_given() const { return !url.empty() || !cache.empty(); }
  // Throws std::invalid_argument on a value out of its range.
  void check() const;
};

// A program that scores: `program:COMMAND`, run by /bin/sh in the working directory.
//   It reads one JSON object a line from its standard input: the fields of rollout_to_program_json, with "index" and
//   "batch_size" (which of the completions of one batch this is), and writes one line for each, in their order: a
//   number, null (not applicable), or {"value": number | null, "reason": "text"}. It may read batch_size lines before
//   it writes. It is started once and ends when its input does; what it writes to standard error is shown when it
//   fails. Output has to be flushed line by line (PYTHONUNBUFFERED is set for it).
struct ProgramOptions {
  double timeout = 60;
  std::int64_t max_restarts = 2;
  FailurePolicy failure{.on_failure = "stop"};

  void visit(SettingsVisitor& v) {
    v.setting("timeout", timeout, "Seconds without a reply until the program is killed.");
    v.setting(
        "max_restarts", max_restarts,
        "How often it is started anew for one completion, after a crash, a time-out or a reply that is no score.");
    failure.visit(v);
  }
};

struct RewardOptions {
  bool require_think = true;
  // answer
  std::string answer_reading = "strict";
  std::string multi_choice = "exact";
  std::string open_text = "overlap";
  double open_threshold = 0.5;
  // grounding
  std::string box_rule = "hungarian";
  std::string box_overlap = "iou";
  bool count_gate = true;
  double grounding_threshold = 0.75;
  // format, think_grounding
  std::int64_t min_think_words = 5;
  double think_agreement = 0.5;
  // length, cosine, repetition
  std::int64_t max_completion_length = 0;
  std::int64_t overlong_cache = 0;
  double cosine_right_short = 1;
  double cosine_right_long = 0.5;
  double cosine_wrong_short = -1;
  double cosine_wrong_long = -0.5;
  std::int64_t repetition_ngram = 3;
  double repetition_penalty = -1;
  std::string repetition_unit = "words";
  JudgeOptions judge;
  ProgramOptions program;

  void visit(SettingsVisitor& v) {
    v.setting("require_think", require_think,
              "Count a completion without <think> as incomplete, which scores 0; false: for models that answer without "
              "reasoning, such as those trained with data.think 0.");
    v.setting("answer_reading", answer_reading,
              "How yes/no and option letters are read: strict (the answer and nothing else) or lenient.");
    v.setting("multi_choice", multi_choice,
              "Answer reward of multi choice: exact (the same set), partial (Jaccard index of the two sets), or subset "
              "(share of the right letters, 0 with a wrong one).");
    v.setting("open_text", open_text,
              "Answer reward of open questions: overlap (F1 of the normalised words) or judge (see judge).");
    v.setting("open_threshold", open_threshold,
              "Answer reward of open questions by overlap: 1 from this token F1 on, else 0; 0 takes the F1 itself.");
    v.setting("box_rule", box_rule, "How several boxes are compared: hungarian or paired.");
    v.setting("box_overlap", box_overlap, "What is averaged over the boxes: iou, or giou as (1 + GIoU) / 2.");
    v.setting(
        "count_gate", count_gate,
        "Grounding reward 0 unless there are as many boxes as in the reference; without it, boxes too many or too "
        "few count as 0 each (soft IoU).");
    v.setting("grounding_threshold", grounding_threshold,
              "Grounding reward: 1 from this mean overlap on, else 0; 0 takes the mean itself.");
    v.setting("min_think_words", min_think_words,
              "Format reward: fewest words of the reasoning, where there is one; numbers do not count.");
    v.setting("think_agreement", think_agreement,
              "think_grounding: IoU from which a box of the reasoning agrees with the answer's of the same region.");
    v.setting("max_completion_length", max_completion_length,
              "length, cosine: longest completion, in tokens; 0: the run's sampling.max_new_tokens.");
    v.setting("overlong_cache", overlong_cache,
              "length: the penalty sets in so many tokens before the longest; 0: a fifth of it.");
    v.setting("cosine_right_short", cosine_right_short, "cosine: a right answer of length 0.");
    v.setting("cosine_right_long", cosine_right_long, "cosine: a right answer of the longest length.");
    v.setting("cosine_wrong_short", cosine_wrong_short, "cosine: a wrong answer of length 0.");
    v.setting("cosine_wrong_long", cosine_wrong_long, "cosine: a wrong answer of the longest length.");
    v.setting("repetition_ngram", repetition_ngram, "repetition: length of the n-grams.");
    v.setting("repetition_penalty", repetition_penalty, "repetition: the value when everything is repeated.");
    v.setting("repetition_unit", repetition_unit,
              "repetition: n-grams of words (lower case, split at spaces), or of tokens as in TRL.");
    v.section("judge", judge, "The judge model, for the reward judge and for open_text: judge.");
    v.section("program", program, "Programs as rewards.");
  }
};

}  // namespace thinkvg::rewards
