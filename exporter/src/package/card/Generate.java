// Answers a question, about images if you like, with plain ONNX Runtime: greedily, on the CPU.
//
//     java -cp JARS Generate.java FOLDER QUESTION [IMAGE...]
//
// JARS: com.microsoft.onnxruntime:onnxruntime and ai.djl.huggingface:tokenizers of Maven, with what they
// need. FOLDER is the one with tokenizer.json. Prints the new tokens' ids, then their text.
//
// Images may have any size: before you decode those of strangers, refuse absurd sizes (say, over 50
// megapixels); an ImageReader reads a header alone. ImageIO knows no WebP and does not turn photos as
// EXIF data say. Names of special tokens in QUESTION, such as <|im_end|>, mean these tokens.

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.onnxruntime.*;
import java.awt.color.ColorSpace;
import java.awt.image.BufferedImage;
import java.io.File;
import java.nio.*;
import java.nio.file.*;
import java.util.*;
import java.util.regex.*;
import java.util.stream.LongStream;
import javax.imageio.ImageIO;

public class Generate {
    static final String SUFFIX = ""; // of the precision's files in onnx/: "" is fp32, "_q4" has weights of 4 bits
    static final int MAX_NEW_TOKENS = 64;
    static final String PROMPT = "<|startoftext|><|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n";

    static final OrtEnvironment ORT = OrtEnvironment.getEnvironment();

    static OnnxTensor get(OrtSession.Result result, String name) {
        return (OnnxTensor) result.get(name).get();
    }

    static OnnxTensor pixels(BufferedImage image) throws OrtException {
        int height = image.getHeight(), width = image.getWidth();
        // getRGB would change the values of grey images, which ImageIO takes for linear light.
        boolean grey = image.getColorModel().getColorSpace().getType() == ColorSpace.TYPE_GRAY;
        int extraBits = image.getColorModel().getComponentSize(0) - 8;
        int[] values = grey
                ? image.getRaster().getSamples(0, 0, width, height, 0, (int[]) null)
                : image.getRGB(0, 0, width, height, null, 0, width);
        ByteBuffer pixels = ByteBuffer.allocateDirect(height * width * 3);
        for (int value : values) {
            int rgb = grey ? (value >> extraBits) * 0x010101 : value;
            pixels.put((byte) (rgb >> 16)).put((byte) (rgb >> 8)).put((byte) rgb);
        }
        return OnnxTensor.createTensor(ORT, pixels.rewind(), new long[] {height, width, 3}, OnnxJavaType.UINT8);
    }

    public static void main(String[] arguments) throws Exception {
        String folder = arguments[0], onnx = folder + "/onnx/";
        List<String> images = List.of(arguments).subList(2, arguments.length);
        HuggingFaceTokenizer tokenizer = HuggingFaceTokenizer.builder()
                .optTokenizerPath(Path.of(folder, "tokenizer.json"))
                .optAddSpecialTokens(false)
                .optTruncation(false)
                .build();
        long imageToken = tokenizer.encode("<image>").getIds()[0];
        // A number or a list of them; the JDK has no reader of JSON.
        String config = Files.readString(Path.of(folder, "generation_config.json"));
        Matcher ends = Pattern.compile("\"eos_token_id\":[\\s\\[]*([\\d,\\s]+)").matcher(config);
        ends.find();
        List<String> endTokens = List.of(ends.group(1).split("\\D+"));
        OrtSession imageProcessor = ORT.createSession(onnx + "image_processor.onnx");
        OrtSession visionEncoder = ORT.createSession(onnx + "vision_encoder" + SUFFIX + ".onnx");
        OrtSession embeddings = ORT.createSession(onnx + "embeddings" + SUFFIX + ".onnx");
        OrtSession decoder = ORT.createSession(onnx + "decoder_model_merged" + SUFFIX + ".onnx");

        // What takes the place of each <image> in the prompt, and the features of each image.
        Deque<long[]> places = new ArrayDeque<>();
        List<FloatBuffer> features = new ArrayList<>();
        for (String image : images) {
            try (OnnxTensor pixels = pixels(ImageIO.read(new File(image)));
                    OrtSession.Result processed = imageProcessor.run(Map.of("pixels", pixels))) {
                places.add((long[]) get(processed, "image_token_ids").getValue());
                Map<String, OnnxTensor> views = new HashMap<>();
                for (String name : visionEncoder.getInputNames()) views.put(name, get(processed, name));
                try (OrtSession.Result encoded = visionEncoder.run(views)) {
                    features.add(get(encoded, "image_features").getFloatBuffer());
                }
            }
        }
        FloatBuffer imageFeatures = FloatBuffer.allocate(features.stream().mapToInt(FloatBuffer::remaining).sum());
        features.forEach(imageFeatures::put);
        imageFeatures.rewind();
        long hidden = ((TensorInfo) embeddings.getInputInfo().get("image_features").getInfo()).getShape()[1];

        String prompt = PROMPT.replace("{content}", "<image>".repeat(images.size()) + arguments[1]);
        long[] inputIds = LongStream.of(tokenizer.encode(prompt).getIds())
                .flatMap(id -> LongStream.of(id == imageToken ? places.remove() : new long[] {id}))
                .toArray();

        // The decoder's state before the first token: zeros for the convolutions, nothing for the attention.
        Map<String, OnnxTensor> state = new HashMap<>();
        for (NodeInfo input : decoder.getInputInfo().values()) {
            if (!input.getName().startsWith("past")) continue;
            TensorInfo info = (TensorInfo) input.getInfo();
            long[] shape = LongStream.of(info.getShape()).map(size -> Math.max(size, 0)).toArray(); // -1: free
            shape[0] = 1;
            int bytes = (int) LongStream.of(shape).reduce(info.type.size, (a, b) -> a * b);
            state.put(input.getName(), OnnxTensor.createTensor(ORT, ByteBuffer.allocateDirect(bytes), shape, info.type));
        }

        List<Long> tokens = new ArrayList<>();
        OrtSession.Result previous = null;
        for (int total = inputIds.length; tokens.size() < MAX_NEW_TOKENS; total++) {
            long[][] mask = {LongStream.generate(() -> 1).limit(total).toArray()};
            long[] rows = {imageFeatures.remaining() / hidden, hidden};
            try (OnnxTensor ids = OnnxTensor.createTensor(ORT, new long[][] {inputIds});
                    OnnxTensor featureRows = OnnxTensor.createTensor(ORT, imageFeatures, rows);
                    OnnxTensor attentionMask = OnnxTensor.createTensor(ORT, mask);
                    var embedded = embeddings.run(Map.of("input_ids", ids, "image_features", featureRows))) {
                Map<String, OnnxTensor> inputs = new HashMap<>(state);
                inputs.put("inputs_embeds", get(embedded, "inputs_embeds"));
                inputs.put("attention_mask", attentionMask);
                OrtSession.Result outputs = decoder.run(inputs);
                state.replaceAll((name, past) -> get(outputs,
                        name.replace("past_key_values", "present").replace("past_conv", "present_conv")));
                if (previous != null) previous.close(); // the state that was read just now
                previous = outputs;
            }
            OnnxTensor logits = get(previous, "logits");
            FloatBuffer values = logits.getFloatBuffer();
            int vocabulary = (int) logits.getInfo().getShape()[2], last = values.capacity() - vocabulary;
            int token = 0;
            for (int id = 1; id < vocabulary; id++) if (values.get(last + id) > values.get(last + token)) token = id;
            if (endTokens.contains(String.valueOf(token))) break;
            tokens.add((long) token);
            inputIds = new long[] {token};
            imageFeatures = FloatBuffer.allocate(0);
        }

        System.out.println(tokens);
        System.out.println(tokenizer.decode(tokens.stream().mapToLong(Long::longValue).toArray(), true));
    }
}
