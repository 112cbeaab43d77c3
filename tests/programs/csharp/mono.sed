# Microsoft's C# sources of ONNX Runtime in the C# that Mono's compiler reads (sed -E). Only where they use
# what it lacks: patterns with `is`, `using` declarations, static lambdas, target-typed `new`, the constraint
# `unmanaged`, and indexers of spans as references.
s/\bis null\b/== null/g
s/\busing var ([A-Za-z]+) = /var \1 = /
s/static ptr =>/ptr =>/
s/DisposableList<OrtValue> ([A-Za-z]+) = new\(/DisposableList<OrtValue> \1 = new DisposableList<OrtValue>(/
s/: unmanaged/: struct/g
s/\(node\.Value is not TensorBase\)/(!(node.Value is TensorBase))/
s/Buffer\.Span\[index\] = value;/var span = Buffer.Span; span[index] = value;/
s/disposableHandles\.Span\[i\] = IntPtr.Zero;/var span = disposableHandles.Span; span[i] = IntPtr.Zero;/
s/dimensions\[0\] = dimensions\[1\] = (size|axisLength);/dimensions[0] = \1; dimensions[1] = \1;/
