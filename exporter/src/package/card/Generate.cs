// Answers a question, about images if you like, with plain ONNX Runtime: greedily, on the CPU.
//
//     dotnet run -- FOLDER QUESTION [IMAGE...]
//
// Packages: Microsoft.ML.OnnxRuntime, StbImageSharp and, for its tokenizer, Microsoft.ML.OnnxRuntimeGenAI
// 0.18 or newer. FOLDER is the one with tokenizer.json. Prints the new tokens' ids, then their text.
//
// Images may have any size: before you decode those of strangers, refuse absurd sizes (say, over 50
// megapixels); ImageInfo.FromStream reads a header alone. StbImageSharp knows no WebP and does not turn
// photos as EXIF data say. Names of special tokens in QUESTION, such as <|im_end|>, mean these tokens.

using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.ML.OnnxRuntime;
using StbImageSharp;

sealed class Tensors : Dictionary<string, OrtValue>
{
    static readonly RunOptions options = new RunOptions();

    public void Put(string name, OrtValue value)
    {
        if (TryGetValue(name, out var old)) old.Dispose();
        this[name] = value;
    }

    // Runs a graph on those of the tensors that it takes and puts its outputs with them: the decoder's
    // present state as the past one of its next run.
    public void Run(InferenceSession session)
    {
        var inputs = session.InputNames.ToDictionary(name => name, name => this[name]);
        var outputs = session.Run(options, inputs, session.OutputNames);
        for (var i = 0; i < outputs.Count; i++)
        {
            var name = session.OutputNames[i].Replace("present.", "past_key_values.").Replace("present_", "past_");
            Put(name, outputs[i]);
        }
    }
}

static class Generate
{
    const string Suffix = ""; // of the precision's files in onnx/: "" is fp32, "_q4" has weights of 4 bits
    const int MaxNewTokens = 64;
    const string Prompt = "<|startoftext|><|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n";

    // C functions, as the C# class Tokenizer wants the whole model loaded.
    const string GenAI = "onnxruntime-genai";
    [DllImport(GenAI)] static extern IntPtr OgaCreateTokenizerFromPath(byte[] folder, out IntPtr tokenizer);
    [DllImport(GenAI)] static extern IntPtr OgaTokenizerGetEosTokenIds(IntPtr tokenizer, out IntPtr ids, out UIntPtr count);
    [DllImport(GenAI)] static extern IntPtr OgaCreateSequences(out IntPtr sequences);
    [DllImport(GenAI)] static extern IntPtr OgaTokenizerEncode(IntPtr tokenizer, byte[] text, IntPtr sequences);
    [DllImport(GenAI)] static extern IntPtr OgaSequencesGetSequenceData(IntPtr sequences, UIntPtr index);
    [DllImport(GenAI)] static extern UIntPtr OgaSequencesGetSequenceCount(IntPtr sequences, UIntPtr index);
    [DllImport(GenAI)] static extern void OgaDestroySequences(IntPtr sequences);
    [DllImport(GenAI)] static extern IntPtr OgaTokenizerDecode(IntPtr tokenizer, int[] ids, UIntPtr count, out IntPtr text);
    [DllImport(GenAI)] static extern void OgaDestroyString(IntPtr text);
    [DllImport(GenAI)] static extern IntPtr OgaResultGetError(IntPtr result);

    static byte[] Utf8(string text) => Encoding.UTF8.GetBytes(text + "\0");

    static void Check(IntPtr failure)
    {
        if (failure != IntPtr.Zero) throw new Exception(Marshal.PtrToStringUTF8(OgaResultGetError(failure)));
    }

    static int[] Encode(IntPtr tokenizer, string text)
    {
        Check(OgaCreateSequences(out var sequences));
        Check(OgaTokenizerEncode(tokenizer, Utf8(text), sequences));
        var ids = new int[(int)OgaSequencesGetSequenceCount(sequences, UIntPtr.Zero)];
        Marshal.Copy(OgaSequencesGetSequenceData(sequences, UIntPtr.Zero), ids, 0, ids.Length);
        OgaDestroySequences(sequences);
        return ids;
    }

    static void Main(string[] arguments)
    {
        Check(OgaCreateTokenizerFromPath(Utf8(arguments[0]), out var tokenizer));
        Check(OgaTokenizerGetEosTokenIds(tokenizer, out var ends, out var endCount));
        var endTokens = new int[(int)endCount];
        Marshal.Copy(ends, endTokens, 0, endTokens.Length);
        var imageToken = Encode(tokenizer, "<image>")[0];
        Func<string, InferenceSession> load = name =>
            new InferenceSession(Path.Combine(arguments[0], "onnx", name + ".onnx"));
        InferenceSession imageProcessor = load("image_processor"), visionEncoder = load("vision_encoder" + Suffix);
        InferenceSession embeddings = load("embeddings" + Suffix), decoder = load("decoder_model_merged" + Suffix);

        // What takes the place of each <image> in the prompt, and the features of all images.
        var tensors = new Tensors();
        var places = new Queue<long[]>();
        var features = new List<float>();
        foreach (var path in arguments.Skip(2))
        {
            var image = ImageResult.FromMemory(File.ReadAllBytes(path), ColorComponents.RedGreenBlue);
            var shape = new long[] { image.Height, image.Width, 3 };
            tensors.Put("pixels", OrtValue.CreateTensorValueFromMemory(image.Data, shape));
            tensors.Run(imageProcessor);
            tensors.Run(visionEncoder);
            places.Enqueue(tensors["image_token_ids"].GetTensorDataAsSpan<long>().ToArray());
            features.AddRange(tensors["image_features"].GetTensorDataAsSpan<float>().ToArray());
        }

        var content = string.Concat(places.Select(_ => "<image>")) + arguments[1];
        var inputIds = Encode(tokenizer, Prompt.Replace("{content}", content))
            .SelectMany(id => id == imageToken ? places.Dequeue() : new long[] { id }).ToArray();

        // The decoder's state before the first token: zeros for the convolutions, nothing for the attention.
        foreach (var input in decoder.InputMetadata.Where(input => input.Key.StartsWith("past")))
        {
            var shape = input.Value.Dimensions.Select(size => (long)Math.Max(size, 0)).ToArray(); // -1: the past tokens
            shape[0] = 1;
            var type = input.Value.ElementDataType;
            tensors.Put(input.Key, OrtValue.CreateAllocatedTensorValue(OrtAllocator.DefaultInstance, type, shape));
            tensors[input.Key].GetTensorMutableRawData().Clear();
        }

        var tokens = new List<int>();
        int hidden = embeddings.OutputMetadata["inputs_embeds"].Dimensions[2];
        int vocabulary = decoder.OutputMetadata["logits"].Dimensions[2];
        for (var total = inputIds.Length; tokens.Count < MaxNewTokens; total++)
        {
            var mask = Enumerable.Repeat(1L, total).ToArray();
            var rows = new long[] { features.Count / hidden, hidden };
            tensors.Put("input_ids", OrtValue.CreateTensorValueFromMemory(inputIds, new long[] { 1, inputIds.Length }));
            tensors.Put("image_features", OrtValue.CreateTensorValueFromMemory(features.ToArray(), rows));
            tensors.Put("attention_mask", OrtValue.CreateTensorValueFromMemory(mask, new long[] { 1, total }));
            tensors.Run(embeddings);
            tensors.Run(decoder);
            var logits = tensors["logits"].GetTensorDataAsSpan<float>();
            var last = logits.Slice(logits.Length - vocabulary).ToArray();
            var token = Array.IndexOf(last, last.Max());
            if (endTokens.Contains(token)) break;
            tokens.Add(token);
            inputIds = new long[] { token };
            features.Clear();
        }

        Check(OgaTokenizerDecode(tokenizer, tokens.ToArray(), (UIntPtr)tokens.Count, out var text));
        Console.WriteLine("[" + string.Join(", ", tokens) + "]\n" + Marshal.PtrToStringUTF8(text));
        OgaDestroyString(text);
    }
}
