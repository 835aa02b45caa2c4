# Headers of libraries that many sources include, parsed once for all of them. Sources include what they use all the
# same: clang-tidy and `scripts/lint headers` compile without these. Only system headers are in them, so that no change
# of this project's own headers builds everything anew. It pays for the large libraries only: reading back what was
# parsed costs as much as parsing the standard library's headers.
set(kvferry_headers_std
  <algorithm> <array> <atomic> <chrono> <cstdint> <cstring> <deque> <functional> <map> <memory> <mutex> <optional> <span>
  <string> <string_view> <thread> <unordered_map> <utility> <variant> <vector> <fmt/format.h>)
set(kvferry_headers_http
  ${kvferry_headers_std} <boost/asio/as_tuple.hpp> <boost/asio/awaitable.hpp> <boost/asio/co_spawn.hpp>
  <boost/asio/detached.hpp> <boost/asio/io_context.hpp> <boost/asio/ip/tcp.hpp> <boost/asio/post.hpp>
  <boost/asio/ssl/stream.hpp> <boost/asio/steady_timer.hpp> <boost/asio/use_awaitable.hpp> <boost/asio/write.hpp>)
set(kvferry_headers_test ${kvferry_headers_std} <gtest/gtest.h> <gmock/gmock.h>)
set(kvferry_links_http Boost::headers OpenSSL::SSL)
set(kvferry_links_test GTest::gtest GTest::gmock)
# Asio keeps two coroutine frames for the next use by default; a request has some twenty, and the others were allocated
# with an alignment, past malloc's caches. All that includes Asio must agree.
set(kvferry_definitions_http BOOST_ASIO_RECYCLING_ALLOCATOR_CACHE_SIZE=32)

# kvferry_precompiled(TARGET KIND): lets the target read the headers of a kind (http, test) in their parsed form.
function(kvferry_precompiled target kind)
  set(holder kvferry_precompiled_${kind})
  if(NOT TARGET ${holder})
    set(source ${PROJECT_BINARY_DIR}/precompiled/${kind}.cc)
    if(NOT EXISTS ${source})
      file(WRITE ${source} "")
    endif()
    add_library(${holder} OBJECT ${source})
    target_link_libraries(${holder} PRIVATE kvferry_flags kvferry_formatting Threads::Threads ${kvferry_links_${kind}})
    target_compile_definitions(${holder} PRIVATE ${kvferry_definitions_${kind}})
    target_precompile_headers(${holder} PRIVATE ${kvferry_headers_${kind}})
  endif()
  target_precompile_headers(${target} REUSE_FROM ${holder})
endfunction()
