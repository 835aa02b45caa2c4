#pragma once

namespace kvferry::bootstrap {

// How long clients go on seeing what is gone, over `rounds` restarts of a worker and of the server at its base. Clients
// ask by the client library, which keeps answers as long as the server allows. One line of JSON; the exit status.
int measure_restarts(int rounds);

}  // namespace kvferry::bootstrap
