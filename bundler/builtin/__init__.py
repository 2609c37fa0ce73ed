"""The plugins that ship with bundler. They come through the same doors as strangers."""
