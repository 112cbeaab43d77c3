// Stands in for the libonnxruntime.so that the JNI library of ONNX Runtime 1.17 is linked with: it has
// the symbols with 1.17's version and takes them from the library that ORT_DYLIB_PATH names, whose
// symbols have its own version. Newer libraries serve the older API.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void* find(const char* name) {
  void* library = dlopen(getenv("ORT_DYLIB_PATH"), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    abort();
  }
  return dlsym(library, name);
}

const void* OrtGetApiBase(void) {
  return ((const void* (*)(void))find("OrtGetApiBase"))();
}

void* OrtSessionOptionsAppendExecutionProvider_CPU(void* options, int use_arena) {
  return ((void* (*)(void*, int))find("OrtSessionOptionsAppendExecutionProvider_CPU"))(options, use_arena);
}
