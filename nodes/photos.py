"""Photos of a subject, what they show in words, and where in them it is."""

from __future__ import annotations

from itertools import chain

from comfy_api.latest import io, ui

from .host.batches import photos_of
from .host.clipseg import CLIPSEG, FOLDER, clipseg_folder, clipseg_names, find_subject
from .host.files import stamp
from .host.photos import SHORTER_SIDE, load_caption, load_photo, pasted_photos, photo_folder, photo_folders
from .host.progress import show_text
from .schema import ADVANCED, TRAIN


class PerfusionLoadPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionLoadPhotos",
            display_name="Perfusion Load Photos",
            category=TRAIN,
            description="Loads a folder of photos of one subject, of any kind and size, with their masks (the file of "
            "the same name in the subfolder mask, else the picture's transparency, else everything) and captions (the "
            "text file of the same name beside the photo), and says which files it cannot use.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=photo_folders(),
                    tooltip="A folder below ComfyUI's input directory, or a demo that comes with the pack. Press R to "
                    "refresh the list.",
                ),
                io.Int.Input(
                    "shorter_side",
                    default=SHORTER_SIDE,
                    min=0,
                    max=8192,
                    step=64,
                    optional=True,
                    tooltip="Larger photos are made smaller, to this many pixels on the shorter side: training uses no "
                    "more, and they would fill the memory. Raise it only to train at more than 1024. 0: as they are.",
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True),
                io.Mask.Output(display_name="masks", is_output_list=True),
                io.String.Output(display_name="captions", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **_) -> str:
        """folder: None where it is linked, for it is not known yet; then all of them count."""
        folders = photo_folders() if folder is None else [folder]
        return stamp(file for name in folders for file in photo_folder(name).files)

    @classmethod
    def execute(cls, folder, shorter_side=SHORTER_SIDE) -> io.NodeOutput:
        found = photo_folder(folder)
        images, masks, remarks = zip(*(load_photo(photo, shorter_side) for photo in found.photos), strict=True)
        captions = list(map(load_caption, found.photos))
        counts = len(images), sum(photo.mask is not None for photo in found.photos), sum(map(bool, captions))
        text = "\n".join(["Photos: {}. Masks: {}. Captions: {}.".format(*counts), *found.remarks, *chain(*remarks)])
        show_text(text, getattr(cls.hidden, "unique_id", None))
        return io.NodeOutput(list(images), list(masks), captions, ui=ui.PreviewText(text))


class PerfusionMasksFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionMasksFromText",
            display_name="Perfusion Masks From Text",
            category=TRAIN,
            description="Finds a subject in photos by its name, with CLIPSeg: a soft mask for each photo.",
            search_aliases=["clipseg", "segment", "mask by text"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Photos of your subject, as a batch or a list of any sizes."),
                io.String.Input(
                    "subject",
                    default="teddy",
                    tooltip="What to look for, in a few plain words: usually the superclass, such as teddy.",
                ),
                io.Combo.Input(
                    "model",
                    options=clipseg_names() or [CLIPSEG],
                    tooltip=f"A folder in models/{FOLDER} with a CLIPSeg model's files. Press R to refresh the list.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="masks", is_output_list=True),
                io.String.Output(display_name="report", tooltip="How sure CLIPSeg is of the subject in each photo."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model) -> bool | str:
        try:
            if model[0] is not None:  # a connected one is known only when it runs
                clipseg_folder(model[0])
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, images, subject, model) -> io.NodeOutput:
        masks, report = find_subject(
            photos_of(images), subject[0].strip(), clipseg_folder(model[0]), cls.hidden.unique_id
        )
        return io.NodeOutput(masks, report)


class PerfusionPasteSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionPasteSubject",
            display_name="Perfusion Paste Subject",
            category=TRAIN,
            description="Makes many photos from few: your subject, cut out by its mask, at other places in other "
            "pictures. A concept trained on them holds its place better beside others.",
            search_aliases=["augment", "copy paste", "more photos"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Photos of your subject, as a batch or a list of any sizes."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per photo, white where the subject is. The subject must be whole in the photo. "
                    "Not connected: the photos' transparency.",
                ),
                io.Image.Input(
                    "backgrounds",
                    tooltip="Pictures without the subject, such as photos of rooms and landscapes; the more, the "
                    "better.",
                ),
                io.Int.Input("count", default=100, min=1, max=1000, tooltip="Pictures to make."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The same seed gives the same pictures.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True),
                io.Mask.Output(display_name="masks", is_output_list=True),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, backgrounds, count, seed, masks=()) -> io.NodeOutput:
        return io.NodeOutput(*pasted_photos(images, masks, backgrounds, count[0], seed[0], cls.hidden.unique_id))
