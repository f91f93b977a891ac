# response_fuzz, built by clang out of the grounding area's own sources with libFuzzer and the sanitizers. Left out, with
# a message, where there is no clang or it lacks libFuzzer.
find_program(THINKVG_CLANG NAMES clang++ clang++-14 clang++-15 clang++-16)
if(NOT THINKVG_CLANG)
  message(STATUS "no clang++: the parsers are fuzzed by response_replay only")
  return()
endif()
set(_fuzz_flags -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined)
set(_probe "${CMAKE_CURRENT_BINARY_DIR}/libfuzzer_probe")
file(WRITE "${_probe}.cc" "extern \"C\" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n")
execute_process(COMMAND ${THINKVG_CLANG} ${_fuzz_flags} "${_probe}.cc" -o "${_probe}"
  RESULT_VARIABLE _failed OUTPUT_QUIET ERROR_QUIET)
if(_failed)
  message(STATUS "${THINKVG_CLANG} lacks libFuzzer: the parsers are fuzzed by response_replay only")
  return()
endif()
file(GLOB _grounding CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/src/grounding/*.cc")
file(GLOB _headers CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/include/thinkvg/grounding/*.h")
set(_sources "${CMAKE_CURRENT_SOURCE_DIR}/fuzz/response_fuzz.cc" ${_grounding} "${CMAKE_SOURCE_DIR}/src/core/error.cc")
add_custom_command(OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/response_fuzz"
  COMMAND ${THINKVG_CLANG} ${_fuzz_flags} -DSPDLOG_FMT_EXTERNAL "-I${CMAKE_SOURCE_DIR}/include" ${_sources}
    -o "${CMAKE_CURRENT_BINARY_DIR}/response_fuzz" -lfmt
  DEPENDS ${_sources} ${_headers} VERBATIM)
add_custom_target(response_libfuzzer ALL DEPENDS "${CMAKE_CURRENT_BINARY_DIR}/response_fuzz")
# The corpus that a run finds is kept in the build folder; the committed one is only read.
file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/fuzz_corpus")
add_test(NAME ResponseFuzz COMMAND "${CMAKE_CURRENT_BINARY_DIR}/response_fuzz" -max_total_time=5 -max_len=4096 -verbosity=0
  "-dict=${CMAKE_CURRENT_SOURCE_DIR}/fuzz/tags.dict" "${CMAKE_CURRENT_BINARY_DIR}/fuzz_corpus"
  "${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus")
set_tests_properties(ResponseFuzz PROPERTIES LABELS unit TIMEOUT 300)
