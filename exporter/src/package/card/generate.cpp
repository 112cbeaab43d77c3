// Answers a question, about images if you like, with plain ONNX Runtime: greedily, on the CPU.
//
//     g++ -std=c++17 -O2 generate.cpp -o generate -lonnxruntime -lonnxruntime-genai
//     ./generate FOLDER QUESTION [IMAGE...]
//
// Needs ONNX Runtime, onnxruntime-genai 0.18 or newer, for its tokenizer, and stb_image.h. FOLDER is the
// one with tokenizer.json. Prints the new tokens' ids, then their text.
//
// Images may have any size: before you decode those of strangers, refuse absurd sizes (say, over 50
// megapixels); stbi_info reads a header alone. stb_image knows no WebP and does not turn photos as
// EXIF data say. Names of special tokens in QUESTION, such as <|im_end|>, mean these tokens.

#include <onnxruntime_cxx_api.h>
#include <ort_genai.h>
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

const std::string SUFFIX = "";  // of the precision's files in onnx/: "" is fp32, "_q4" has weights of 4 bits
const size_t MAX_NEW_TOKENS = 64;
const std::string PROMPT = "<|startoftext|><|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n";

using Tensors = std::map<std::string, Ort::Value>;

template <typename T>
Ort::Value tensor(const T* data, const std::vector<int64_t>& shape) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto value = Ort::Value::CreateTensor<T>(allocator, shape.data(), shape.size());
  const size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  std::copy_n(data, count, value.template GetTensorMutableData<T>());
  return value;
}

template <typename T>
void append(std::vector<T>& to, const Ort::Value& value) {
  const T* data = value.GetTensorData<T>();
  to.insert(to.end(), data, data + value.GetTensorTypeAndShapeInfo().GetElementCount());
}

// Runs a graph on those of the tensors that it takes and puts its outputs with them: the decoder's
// present state as the past one of its next run.
void run(Ort::Session& session, Tensors& tensors) {
  const auto inputs = session.GetInputNames(), outputs = session.GetOutputNames();
  Ort::IoBinding binding(session);
  for (const auto& name : inputs) binding.BindInput(name.c_str(), tensors.at(name));
  for (const auto& name : outputs) binding.BindOutput(name.c_str(), Ort::AllocatorWithDefaultOptions().GetInfo());
  session.Run(Ort::RunOptions(), binding);
  auto values = binding.GetOutputValues();
  for (size_t i = 0; i < outputs.size(); i++) {
    const auto name = std::regex_replace(outputs[i], std::regex("^present\\."), "past_key_values.");
    tensors.insert_or_assign(std::regex_replace(name, std::regex("^present_"), "past_"), std::move(values[i]));
  }
}

int main(int argc, char** argv) {
  OgaTokenizer* created;
  OgaCheckResult(OgaCreateTokenizerFromPath(argv[1], &created));
  const std::unique_ptr<OgaTokenizer> tokenizer(created);
  const auto end_tokens = tokenizer->GetEosTokenIds();
  const int32_t image_token = tokenizer->ToTokenId("<image>");
  Ort::Env env;
  auto load = [&](const std::string& name) {
    const auto path = std::filesystem::path(argv[1]) / "onnx" / (name + ".onnx");
    return Ort::Session(env, path.c_str(), Ort::SessionOptions());
  };
  Ort::Session image_processor = load("image_processor"), vision_encoder = load("vision_encoder" + SUFFIX);
  Ort::Session embeddings = load("embeddings" + SUFFIX), decoder = load("decoder_model_merged" + SUFFIX);

  // What takes the place of each <image> in the prompt, and the features of all images.
  Tensors tensors;
  std::vector<std::vector<int64_t>> places;
  std::vector<float> features;
  std::string content;
  for (int i = 3; i < argc; i++) {
    int width, height, channels;
    uint8_t* pixels = stbi_load(argv[i], &width, &height, &channels, 3);
    if (!pixels) throw std::runtime_error(stbi_failure_reason());
    tensors.insert_or_assign("pixels", tensor(pixels, {height, width, 3}));
    stbi_image_free(pixels);
    run(image_processor, tensors);
    run(vision_encoder, tensors);
    append(places.emplace_back(), tensors.at("image_token_ids"));
    append(features, tensors.at("image_features"));
    content += "<image>";
  }

  std::string prompt = PROMPT;
  prompt.replace(prompt.find("{content}"), strlen("{content}"), content + argv[2]);
  const auto sequences = OgaSequences::Create();
  tokenizer->Encode(prompt.c_str(), *sequences);
  std::vector<int64_t> input_ids;
  size_t next = 0;
  for (size_t i = 0; i < sequences->SequenceCount(0); i++) {
    const int32_t id = sequences->SequenceData(0)[i];
    const std::vector<int64_t> ids = id == image_token ? places.at(next++) : std::vector<int64_t>{id};
    input_ids.insert(input_ids.end(), ids.begin(), ids.end());
  }

  // The decoder's state before the first token: zeros for the convolutions, nothing for the attention.
  Ort::AllocatorWithDefaultOptions allocator;
  for (size_t i = 0; i < decoder.GetInputCount(); i++) {
    const std::string name = decoder.GetInputNames()[i];
    if (name.rfind("past", 0) != 0) continue;
    const auto type = decoder.GetInputTypeInfo(i);
    const auto info = type.GetTensorTypeAndShapeInfo();
    auto shape = info.GetShape();
    for (int64_t& size : shape) size = std::max<int64_t>(size, 0);  // -1: the past tokens
    shape[0] = 1;
    auto past = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), info.GetElementType());
    memset(past.GetTensorMutableRawData(), 0, past.GetTensorSizeInBytes());
    tensors.emplace(name, std::move(past));
  }

  std::vector<int32_t> tokens;
  const int64_t hidden = vision_encoder.GetOutputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape()[1];
  for (int64_t total = input_ids.size(); tokens.size() < MAX_NEW_TOKENS; total++) {
    const int64_t length = input_ids.size(), rows = features.size() / hidden;
    tensors.insert_or_assign("input_ids", tensor(input_ids.data(), {1, length}));
    tensors.insert_or_assign("image_features", tensor(features.data(), {rows, hidden}));
    tensors.insert_or_assign("attention_mask", tensor(std::vector<int64_t>(total, 1).data(), {1, total}));
    run(embeddings, tensors);
    run(decoder, tensors);
    const Ort::Value& logits = tensors.at("logits");
    const auto shape = logits.GetTensorTypeAndShapeInfo().GetShape();
    const float* last = logits.GetTensorData<float>() + (shape[1] - 1) * shape[2];
    const int32_t token = std::max_element(last, last + shape[2]) - last;
    if (std::count(end_tokens.begin(), end_tokens.end(), token)) break;
    tokens.push_back(token);
    input_ids = {token};
    features.clear();
  }

  std::cout << "[";
  for (size_t i = 0; i < tokens.size(); i++) std::cout << (i ? ", " : "") << tokens[i];
  std::cout << "]\n" << tokenizer->Decode(tokens.data(), tokens.size()) << "\n";
}
