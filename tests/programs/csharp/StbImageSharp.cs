// What Generate.cs uses of the NuGet package StbImageSharp, over the C library that it is a port of:
// libstb_image.so, compiled from stb_image.c.
using System;
using System.Runtime.InteropServices;

namespace StbImageSharp
{
    public enum ColorComponents { RedGreenBlue = 3 }

    public class ImageResult
    {
        public int Width, Height;
        public byte[] Data;

        [DllImport("stb_image")]
        static extern IntPtr stbi_load_from_memory(byte[] data, int length, out int width, out int height, out int channels, int wanted);
        [DllImport("stb_image")]
        static extern void stbi_image_free(IntPtr pixels);

        public static ImageResult FromMemory(byte[] data, ColorComponents components)
        {
            var image = new ImageResult();
            var pixels = stbi_load_from_memory(data, data.Length, out image.Width, out image.Height, out _, (int)components);
            if (pixels == IntPtr.Zero) throw new InvalidOperationException("not an image");
            image.Data = new byte[image.Width * image.Height * (int)components];
            Marshal.Copy(pixels, image.Data, 0, image.Data.Length);
            stbi_image_free(pixels);
            return image;
        }
    }
}
