"""The one room that knows ComfyUI's internals; a change over there is mended here."""
