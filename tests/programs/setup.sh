#!/usr/bin/env bash
# Puts into a folder what the programs of the exported README.md need in the tests, from PyPI and npm:
#
#     setup.sh FOLDER LIBONNXRUNTIME PYTHON_PACKAGES
#
# python/  tokenizers and Pillow
# lib/     the libraries of ONNX Runtime, onnxruntime-genai and stb_image
# java/    ONNX Runtime's and DJL's classes, from a package that has both (ONNX Runtime 1.17; a shim lets it
#          load the library that is given)
# cpp/     ONNX Runtime's headers
# csharp/  ONNX Runtime's C# library, compiled for Mono
set -euo pipefail
shims=$(realpath "$(dirname "$0")")
library=$(realpath "$2")
genai=$(realpath "$3/onnxruntime_genai/libonnxruntime-genai.so")
mkdir -p "$1"
cd "$1"
rm -rf python lib java cpp csharp package

python3 -m pip install --quiet --no-deps --target python tokenizers==0.23.3 pillow==13.0.0

mkdir lib
ln -s "$library" lib/libonnxruntime.so
ln -s "$library" lib/libonnxruntime.so.1
ln -s "$genai" lib/
gcc -shared -fPIC -O2 "$shims/csharp/stb_image.c" -o lib/libstb_image.so -lm

python3 -m pip download --quiet --no-deps --dest . pyserini==1.6.0
tar xzf pyserini-1.6.0.tar.gz --wildcards --strip-components=4 '*-fatjar.jar'
unzip -qo anserini-*-fatjar.jar 'ai/onnxruntime/*.class' 'ai/onnxruntime/native/linux-x64/libonnxruntime4j_jni.so' \
    'ai/djl/*.class' 'native/lib/linux-x86_64/cpu/*' native/lib/tokenizers.properties 'org/slf4j/*.class' -d java
rm pyserini-1.6.0.tar.gz anserini-*-fatjar.jar
mv java/ai/onnxruntime/native/linux-x64 java/jni
gcc -shared -fPIC -O1 "$shims/java/onnxruntime.c" -Wl,--version-script="$shims/java/onnxruntime.map" \
    -Wl,-soname,libonnxruntime.so.1.17.0 -o java/jni/libonnxruntime.so -ldl

npm pack --silent com.github.asus4.onnxruntime@0.4.9 > /dev/null
tar xzf com.github.asus4.onnxruntime-0.4.9.tgz --wildcards package/Runtime '*/ios-arm64/onnxruntime.framework/Headers'
rm -r com.github.asus4.onnxruntime-0.4.9.tgz package/Runtime/Training
mkdir cpp csharp
mv package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers cpp/include
find package/Runtime -name '*.cs' -exec sed -i -E -f "$shims/csharp/mono.sed" {} +
find package/Runtime -name '*.cs' -print0 | xargs -0 mcs -nowarn:0 -unsafe -langversion:latest -define:NETSTANDARD2_0 \
    -target:library -out:csharp/Microsoft.ML.OnnxRuntime.dll
rm -r package
