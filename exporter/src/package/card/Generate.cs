// dotnet add package Microsoft.ML.OnnxRuntime
// Greedy generation from token ids and, for images, the features of vision_encoder.
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

static class Generate
{
    public static List<long> Run(string folder, long[] ids, int steps, ISet<long> endTokens,
                                 float[]? imageFeatures = null, long imageToken = 396, string suffix = "")
    {
        using var embedTokens = new InferenceSession($"{folder}/onnx/embed_tokens{suffix}.onnx");
        using var decoder = new InferenceSession($"{folder}/onnx/decoder_model_merged{suffix}.onnx");

        // The state before the first token: zeros for the convolutions, nothing for the attention.
        // (In fp16 and q4f16 it is Float16 in place of float.)
        var state = new Dictionary<string, DenseTensor<float>>();
        foreach (var (name, info) in decoder.InputMetadata.Where(i => i.Key.StartsWith("past")))
        {
            var shape = info.Dimensions.ToArray();
            shape[0] = 1;
            for (int axis = 1; axis < shape.Length; axis++) shape[axis] = Math.Max(shape[axis], 0);
            state[name] = new DenseTensor<float>(shape);
        }

        var tokens = new List<long>();
        long[] next = ids;
        for (int total = ids.Length; tokens.Count < steps; total++)
        {
            var input = new DenseTensor<long>(next, new[] { 1, next.Length });
            using var embedded = embedTokens.Run(new[] { NamedOnnxValue.CreateFromTensor("input_ids", input) });
            var embeds = embedded.First().AsTensor<float>().ToDenseTensor();
            if (imageFeatures != null && tokens.Count == 0)
            {
                int width = embeds.Dimensions[2], row = 0;
                for (int i = 0; i < ids.Length; i++)
                    if (ids[i] == imageToken)
                        imageFeatures.AsSpan(row++ * width, width).CopyTo(embeds.Buffer.Span.Slice(i * width, width));
            }

            var mask = new DenseTensor<long>(Enumerable.Repeat(1L, total).ToArray(), new[] { 1, total });
            var inputs = state.Select(s => NamedOnnxValue.CreateFromTensor(s.Key, s.Value)).ToList();
            inputs.Add(NamedOnnxValue.CreateFromTensor("inputs_embeds", embeds));
            inputs.Add(NamedOnnxValue.CreateFromTensor("attention_mask", mask));
            using var outputs = decoder.Run(inputs);

            var logits = outputs.First(o => o.Name == "logits").AsTensor<float>();
            int vocabulary = logits.Dimensions[2];
            var last = logits.ToArray().AsSpan()[^vocabulary..].ToArray();
            long token = Array.IndexOf(last, last.Max());
            if (endTokens.Contains(token)) break;
            tokens.Add(token);
            next = new[] { token };
            foreach (var name in state.Keys.ToList())
            {
                var present = name.Replace("past_key_values", "present").Replace("past_conv", "present_conv");
                state[name] = outputs.First(o => o.Name == present).AsTensor<float>().ToDenseTensor();
            }
        }
        return tokens;
    }
}
