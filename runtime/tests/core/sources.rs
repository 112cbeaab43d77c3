//! Images as people have them: in memory, in data URIs, behind URLs.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use image::RgbImage;
use lfm2vl::image::{
    Limits, PixelFormat, decode, from_array, from_dynamic, from_pixels, load, load_all, open,
};
use ndarray::{Array3, s};

use crate::common::testdata;

fn sample(name: &str) -> String {
    testdata("tiny-shapes/samples").join(name).to_str().unwrap().to_owned()
}

fn photo() -> RgbImage {
    open(sample("plain.png").as_ref(), &Limits::default()).unwrap()
}

#[test]
fn pixels_in_any_order() {
    let image = photo();
    let (width, height) = image.dimensions();
    let convert = |format, pixel: fn([u8; 3]) -> Vec<u8>| {
        let bytes: Vec<u8> = image.pixels().flat_map(|p| pixel(p.0)).collect();
        from_pixels(&bytes, width, height, format).unwrap()
    };
    assert_eq!(convert(PixelFormat::Rgb, |p| p.to_vec()), image);
    assert_eq!(convert(PixelFormat::Rgba, |[r, g, b]| vec![r, g, b, 7]), image);
    assert_eq!(convert(PixelFormat::Bgr, |[r, g, b]| vec![b, g, r]), image);
    assert_eq!(convert(PixelFormat::Bgra, |[r, g, b]| vec![b, g, r, 7]), image);
    let gray = convert(PixelFormat::Gray, |[r, ..]| vec![r]);
    assert!(gray.pixels().zip(image.pixels()).all(|(gray, p)| gray.0 == [p[0]; 3]));

    let error = from_pixels(&[0; 10], 2, 2, PixelFormat::Rgb).unwrap_err().to_string();
    assert!(error.contains("have 10 bytes") && error.contains("need 12"), "{error}");
}

#[test]
fn arrays_of_any_layout() {
    let image = photo();
    let (width, height) = image.dimensions();
    let shape = (height as usize, width as usize, 3);
    let array = Array3::from_shape_vec(shape, image.as_raw().clone()).unwrap();
    assert_eq!(from_array(array.view()).unwrap(), image);
    // Channels first in memory, and every second row.
    let planes = array.view().permuted_axes([2, 0, 1]).as_standard_layout().to_owned();
    assert_eq!(from_array(planes.view().permuted_axes([1, 2, 0])).unwrap(), image);
    let half = from_array(array.slice(s![..;2, .., ..])).unwrap();
    assert_eq!(half.get_pixel(3, 1), image.get_pixel(3, 2));
    assert_eq!(
        from_array(array.slice(s![.., .., ..1])).unwrap().get_pixel(0, 0).0,
        [image.get_pixel(0, 0)[0]; 3]
    );
    let error = from_array(array.slice(s![.., .., ..2])).unwrap_err().to_string();
    assert!(error.contains("2 channels"), "{error}");
    let dynamic = image::DynamicImage::ImageRgb8(image.clone());
    assert_eq!(from_dynamic(dynamic), image);
}

#[test]
fn data_uris() {
    // A gray pixel as PNG.
    let uri = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
    assert_eq!(load(uri, &Limits::default()).unwrap().get_pixel(0, 0).0, [128; 3]);
    for (uri, message) in [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:,", "0 bytes"),
        ("data:image/png;base64,AAAA", "not a PNG"),
    ] {
        let error = load(uri, &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(message), "{uri}: {error}");
    }
    let limits = Limits { max_bytes: 40, ..Limits::default() };
    assert!(load(uri, &limits).unwrap_err().to_string().contains("limit of 40"));
}

#[test]
fn several_files_keep_their_order() {
    let names = ["plain.png", "tall.png", "gray.png", "plain.png"].map(sample);
    let images = load_all(&names, &Limits::default()).unwrap();
    for (image, name) in images.iter().zip(&names) {
        assert_eq!(*image, open(name.as_ref(), &Limits::default()).unwrap());
    }
    let error = load_all(&[names[0].clone(), "no.png".into()], &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("no.png"), "{error}");
}

#[test]
fn decoding_ends_in_time() {
    let bytes = std::fs::read(sample("plain.png")).unwrap();
    let limits = Limits { max_time: Duration::ZERO, ..Limits::default() };
    for bytes in [bytes, std::fs::read(sample("tiled.jpg")).unwrap()] {
        let error = decode(&bytes, &limits).unwrap_err().to_string();
        assert!(error.contains("longer than the limit of 0ns"), "{error}");
    }
}

/// A server that answers one request with `answer`, then after a pause with `rest`.
fn serve(answer: Vec<u8>, pause: Duration, rest: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/image", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(&answer);
        thread::sleep(pause);
        let _ = stream.write_all(&rest);
    });
    address
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// Limits for a server on this machine.
fn local() -> Limits {
    Limits { allow_private_addresses: true, ..Limits::default() }
}

#[test]
fn urls() {
    let body = std::fs::read(sample("plain.png")).unwrap();
    let url = serve(answer("200 OK", "", &body), Duration::ZERO, Vec::new());
    assert_eq!(load(&url, &local()).unwrap(), photo());

    let target = serve(answer("200 OK", "", &body), Duration::ZERO, Vec::new());
    let redirect = format!("Location: {target}\r\n");
    let url = serve(answer("302 Found", &redirect, b""), Duration::ZERO, Vec::new());
    assert_eq!(load(&url, &local()).unwrap(), photo());

    let url = serve(answer("404 Not Found", "", b""), Duration::ZERO, Vec::new());
    let error = load(&url, &local()).unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("404"), "{error}");

    let url = serve(answer("200 OK", "", b"<html>"), Duration::ZERO, Vec::new());
    let error = load(&url, &local()).unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("not a PNG"), "{error}");
}

#[test]
fn urls_keep_to_the_limits() {
    let limits = Limits { max_bytes: 1000, ..local() };
    let told = answer("200 OK", "Content-Length: 1001\r\n", b"");
    let untold = answer("200 OK", "", &[0; 5000]);
    for body in [told, untold] {
        let url = serve(body, Duration::ZERO, Vec::new());
        let error = load(&url, &limits).unwrap_err().to_string();
        assert!(error.contains("limit of 1000"), "{error}");
    }

    let slow = Duration::from_secs(5);
    let limits = Limits { max_time: Duration::from_millis(200), ..local() };
    let url = serve(answer("200 OK", "Content-Length: 9\r\n", b"abc"), slow, b"defghi".to_vec());
    let start = Instant::now();
    let error = load(&url, &limits).unwrap_err().to_string();
    assert!(error.contains("longer than the limit of 200ms"), "{error}");
    assert!(start.elapsed() < slow, "it waited for the server");
}

#[test]
fn private_addresses_are_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    for host in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.0.0.1", "2130706433"] {
        let error = load(&format!("http://{host}:{port}/"), &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("private address"), "{host}: {error}");
    }
    assert!(listener.accept().is_err(), "somebody came");
}
