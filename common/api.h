#pragma once

// Marks what libkvferry.so exports; everything else is hidden.
#define KVFERRY_API __attribute__((visibility("default")))
