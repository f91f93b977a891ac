# The page that the server shows goes into the program.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/src/serve/page.html")
file(READ "${CMAKE_SOURCE_DIR}/src/serve/page.html" THINKVG_PAGE)
configure_file("${CMAKE_SOURCE_DIR}/src/serve/page.cc.in" "${CMAKE_BINARY_DIR}/serve_page.cc" @ONLY)
target_sources(thinkvg_serve PRIVATE "${CMAKE_BINARY_DIR}/serve_page.cc")
