// Maven: com.microsoft.onnxruntime:onnxruntime
// Greedy generation from token ids and, for images, the features of vision_encoder.
import ai.onnxruntime.*;
import java.util.*;

final class Generate {
    static List<Long> run(String folder, long[] ids, int steps, Set<Long> endTokens,
                          float[][] imageFeatures, long imageToken, String suffix) throws OrtException {
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        try (OrtSession embedTokens = environment.createSession(folder + "/onnx/embed_tokens" + suffix + ".onnx");
             OrtSession decoder = environment.createSession(folder + "/onnx/decoder_model_merged" + suffix + ".onnx")) {

            // The state before the first token: zeros for the convolutions, nothing for the
            // attention. (In fp16 and q4f16 it has the type FLOAT16 in place of FLOAT.)
            Map<String, OnnxTensor> state = new HashMap<>();
            for (NodeInfo input : decoder.getInputInfo().values()) {
                if (!input.getName().startsWith("past")) continue;
                long[] shape = ((TensorInfo) input.getInfo()).getShape();
                shape[0] = 1;
                for (int axis = 1; axis < shape.length; axis++) shape[axis] = Math.max(shape[axis], 0);
                int size = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
                state.put(input.getName(), OnnxTensor.createTensor(environment, java.nio.FloatBuffer.allocate(size), shape));
            }

            List<Long> tokens = new ArrayList<>();
            long[] next = ids;
            OrtSession.Result previous = null;
            for (int total = ids.length; tokens.size() < steps; total++) {
                float[][][] embeds;
                try (OnnxTensor input = OnnxTensor.createTensor(environment, new long[][] {next});
                     OrtSession.Result embedded = embedTokens.run(Map.of("input_ids", input))) {
                    embeds = (float[][][]) embedded.get(0).getValue();
                }
                if (imageFeatures != null && tokens.isEmpty()) {
                    int row = 0;
                    for (int i = 0; i < ids.length; i++) if (ids[i] == imageToken) embeds[0][i] = imageFeatures[row++];
                }
                long[][] mask = new long[1][total];
                Arrays.fill(mask[0], 1);
                Map<String, OnnxTensor> inputs = new HashMap<>(state);
                inputs.put("inputs_embeds", OnnxTensor.createTensor(environment, embeds));
                inputs.put("attention_mask", OnnxTensor.createTensor(environment, mask));
                OrtSession.Result outputs = decoder.run(inputs);
                inputs.get("inputs_embeds").close();
                inputs.get("attention_mask").close();

                float[][] logits = ((float[][][]) outputs.get("logits").get().getValue())[0];
                float[] last = logits[logits.length - 1];
                int token = 0;
                for (int i = 1; i < last.length; i++) if (last[i] > last[token]) token = i;
                for (String name : state.keySet()) {
                    String present = name.replace("past_key_values", "present").replace("past_conv", "present_conv");
                    state.put(name, (OnnxTensor) outputs.get(present).get());
                }
                if (previous != null) previous.close(); // the state that was read in this step
                previous = outputs;
                if (endTokens.contains((long) token)) break;
                tokens.add((long) token);
                next = new long[] {token};
            }
            if (previous != null) previous.close();
            return tokens;
        }
    }
}
