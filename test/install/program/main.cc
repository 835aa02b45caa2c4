#include <engine/engine.h>

#include <cstdio>

int main() {
  kvferry::EngineConfig config;
  auto engine = kvferry::Engine::create(config);
  std::puts(engine ? engine.value()->describe().c_str() : engine.error().to_string().c_str());
  return engine ? 0 : 1;
}
