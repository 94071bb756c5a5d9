"""The Loader says where its concept was encoded otherwise than it was trained."""

from steps import each_renderer, panel

TELL = "what => app.api.dispatchCustomEvent('perfusion.encoder', what)"


@each_renderer
def test_what_differs_of_the_text_encoder_is_on_the_badge_until_it_is_mended(page):
    badge = panel(page).locator(".perfusion-badge")
    assert badge.text_content() == ""
    page.evaluate(TELL, {"my-tiger.safetensors": {"text_encoder": True}})
    assert badge.text_content() == ""
    page.evaluate(TELL, {"my-teddy.safetensors": {"clip_skip": [1, 2], "text_encoder": True}})
    assert badge.text_content() == (
        "Trained with clip skip 1, here it is 2. Set CLIP Set Last Layer to -1. Trained with another text encoder "
        "(another checkpoint, or a LoRA more or less)."
    )
    page.evaluate(TELL, {"my-teddy.safetensors": {}})
    assert badge.text_content() == ""
