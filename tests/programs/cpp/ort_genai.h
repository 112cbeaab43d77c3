// What generate.cpp uses of onnxruntime-genai's ort_genai.h, which is in the archives of its releases
// and not in its Python packages, where the library for the test comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

struct OgaResult;
struct OgaSequences;
struct OgaTokenizer;

extern "C" {
OgaResult* OgaCreateSequences(OgaSequences** sequences);
OgaResult* OgaCreateTokenizerFromPath(const char* folder, OgaTokenizer** tokenizer);
OgaResult* OgaTokenizerDecode(const OgaTokenizer*, const int32_t* ids, size_t count, const char** text);
OgaResult* OgaTokenizerEncode(const OgaTokenizer*, const char* text, OgaSequences*);
OgaResult* OgaTokenizerGetEosTokenIds(const OgaTokenizer*, const int32_t** ids, size_t* count);
OgaResult* OgaTokenizerToTokenId(const OgaTokenizer*, const char* token, int32_t* id);
const char* OgaResultGetError(const OgaResult*);
const int32_t* OgaSequencesGetSequenceData(const OgaSequences*, size_t index);
size_t OgaSequencesGetSequenceCount(const OgaSequences*, size_t index);
void OgaDestroySequences(OgaSequences*);
void OgaDestroyString(const char* text);
void OgaDestroyTokenizer(OgaTokenizer*);
}

inline void OgaCheckResult(OgaResult* result) {
  if (result) throw std::runtime_error(OgaResultGetError(result));
}

struct OgaString {
  OgaString(const char* text) : text_(text) {}
  ~OgaString() { OgaDestroyString(text_); }
  operator const char*() const { return text_; }
  const char* text_;
};

struct OgaSequences {
  static std::unique_ptr<OgaSequences> Create() {
    OgaSequences* sequences;
    OgaCheckResult(OgaCreateSequences(&sequences));
    return std::unique_ptr<OgaSequences>(sequences);
  }
  size_t SequenceCount(size_t index) const { return OgaSequencesGetSequenceCount(this, index); }
  const int32_t* SequenceData(size_t index) const { return OgaSequencesGetSequenceData(this, index); }
  static void operator delete(void* sequences) { OgaDestroySequences(static_cast<OgaSequences*>(sequences)); }
};

struct OgaTokenizer {
  void Encode(const char* text, OgaSequences& sequences) const {
    OgaCheckResult(OgaTokenizerEncode(this, text, &sequences));
  }
  OgaString Decode(const int32_t* ids, size_t count) const {
    const char* text;
    OgaCheckResult(OgaTokenizerDecode(this, ids, count, &text));
    return text;
  }
  std::vector<int32_t> GetEosTokenIds() const {
    const int32_t* ids;
    size_t count;
    OgaCheckResult(OgaTokenizerGetEosTokenIds(this, &ids, &count));
    return {ids, ids + count};
  }
  int32_t ToTokenId(const char* token) const {
    int32_t id;
    OgaCheckResult(OgaTokenizerToTokenId(this, token, &id));
    return id;
  }
  static void operator delete(void* tokenizer) { OgaDestroyTokenizer(static_cast<OgaTokenizer*>(tokenizer)); }
};
