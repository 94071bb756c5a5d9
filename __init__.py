"""ComfyUI-Perfusion: teach an image model a new thing from a few photos."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes.extension import PerfusionExtension

    return PerfusionExtension()
