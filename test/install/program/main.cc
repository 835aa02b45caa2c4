#include <engine/engine.h>
#include <engine/parcel.h>

#include <cstdio>

int main() {
  auto engine = kvferry::Engine::create(kvferry::EngineConfig{});
  std::puts(engine ? (*engine)->describe().c_str() : engine.error().to_string().c_str());
  return engine ? 0 : 1;
}
