"""Folders of the contract `static` in plain onnxruntime: every size is fixed, so views and prompts are
padded, and keys and values lie in buffers of one length."""

import numpy as np


def image_features(encoder, pixels, mask, shapes):
    """The valid tokens of all views in order."""
    views, patches, _ = encoder.get_inputs()[0].shape
    features = []
    for start in range(0, len(pixels), views):
        # Where views are missing, the last one comes again.
        batch = [min(start + i, len(pixels) - 1) for i in range(views)]
        pad = [(0, 0), (0, patches - pixels.shape[1])]
        inputs = {
            "pixel_values": np.pad(pixels[batch], [*pad, (0, 0)]),
            "pixel_attention_mask": np.pad(mask[batch], pad),
            "spatial_shapes": shapes[batch],
        }
        padded = encoder.run(["image_features"], inputs)[0]
        for view in range(min(views, len(pixels) - start)):
            tokens = mask[start + view].sum() * padded.shape[1] // patches
            features.append(padded[view, :tokens])
    return np.concatenate(features)


class Decoder:
    """One conversation; `state` has what the community contract's would have."""

    def __init__(self, graphs):
        self.graphs = {g.get_inputs()[0].shape[1]: g for g in (graphs["decoder_prefill"], graphs["decoder_model_merged"])}
        inputs = graphs["decoder_model_merged"].get_inputs()
        self.buffers = {i.name: np.zeros(i.shape, np.float32) for i in inputs if i.name.startswith("past")}
        self.places = inputs[1].shape[1] - 1
        self.tokens = 0

    def run(self, embeds, mask):
        """Embeddings [1, tokens, hidden] -> logits [1, 1, vocab]; the mask is all ones."""
        assert mask.all()
        while embeds.shape[1]:
            length = 1 if embeds.shape[1] == 1 else max(self.graphs)
            piece, embeds = embeds[:, :length], embeds[:, length:]
            logits = self.run_piece(piece, length)
        return logits

    def run_piece(self, piece, length):
        new, graph = piece.shape[1], self.graphs[length]
        mask = np.zeros((1, self.places + length), np.int64)
        mask[:, : self.tokens] = 1
        mask[:, self.places : self.places + new] = 1
        inputs = {"inputs_embeds": np.pad(piece, [(0, 0), (0, length - new), (0, 0)]), "attention_mask": mask}
        outputs = [o.name for o in graph.get_outputs()]
        results = dict(zip(outputs, graph.run(outputs, {**inputs, **self.buffers})))
        for name, buffer in self.buffers.items():
            result = results[name.replace("past_key_values", "present").replace("past_conv", "present_conv")]
            if result.shape == buffer.shape:
                self.buffers[name] = result
            else:
                buffer[:, :, self.tokens : self.tokens + new] = result[:, :, :new]
        self.tokens += new
        return results["logits"]

    @property
    def state(self):
        return {n: b if "conv" in n else b[:, :, : self.tokens] for n, b in self.buffers.items()}
