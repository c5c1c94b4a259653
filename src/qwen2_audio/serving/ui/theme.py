"""Colours, sizes and fonts of the page: fonts of the visitor's own machine, nothing is fetched."""

from __future__ import annotations

import gradio as gr

_FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "sans-serif",
)
_MONOSPACED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_ACCENT = gr.themes.Color(
    name="violet-ink",
    c50="#f3f2ff",
    c100="#e9e7ff",
    c200="#d6d2ff",
    c300="#b8b1ff",
    c400="#9a90ff",
    c500="#7468ff",
    c600="#5b4fe8",
    c700="#4a3fc7",
    c800="#3d359f",
    c900="#332e7d",
    c950="#1e1b4d",
)


def theme() -> gr.themes.Base:
    """The page's theme, light and dark."""
    base = gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_lg,
        font=_FONTS,
        font_mono=_MONOSPACED,
    )
    return base.set(
        body_background_fill="#fbfbfd",
        body_background_fill_dark="#111114",
        background_fill_primary_dark="#17171b",
        background_fill_secondary_dark="#1d1d22",
        body_text_color="#1d1d22",
        body_text_color_dark="#ececf1",
        body_text_color_subdued="#5f5f6b",
        body_text_color_subdued_dark="#a5a5b3",
        block_info_text_color="#5f5f6b",
        block_info_text_color_dark="#a5a5b3",
        block_background_fill="white",
        block_background_fill_dark="#17171b",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        input_background_fill="white",
        input_background_fill_dark="#1d1d22",
        input_border_width="1px",
        input_border_color="#d9d9e0",
        input_border_color_dark="#3a3a44",
        checkbox_border_color="#8b8b98",
        checkbox_border_color_dark="#8b8b98",
        input_placeholder_color="#6b6b78",
        input_placeholder_color_dark="#9a9aa8",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
