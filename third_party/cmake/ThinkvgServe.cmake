# The page that the server shows goes into the program.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/src/serve/page.html")
file(READ "${CMAKE_SOURCE_DIR}/src/serve/page.html" THINKVG_PAGE)
configure_file("${CMAKE_SOURCE_DIR}/src/serve/page.cc.in" "${CMAKE_BINARY_DIR}/serve_page.cc" @ONLY)
target_sources(thinkvg_serve PRIVATE "${CMAKE_BINARY_DIR}/serve_page.cc")

# Only the engine's adapter knows tensors.
file(GLOB _plain CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/src/serve/*.cc")
list(FILTER _plain EXCLUDE REGEX "/engine_backend[.]cc$")
set_source_files_properties(${_plain} "${CMAKE_BINARY_DIR}/serve_page.cc" PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
