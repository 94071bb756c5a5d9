"""Tokens that are padding stay as they are."""

from __future__ import annotations

import torch

from perfusion_core import ConceptSet, EditedEncoding

from .makers import FIRST, make_case, weight


def test_padding_keeps_its_keys_and_values_bit_for_bit() -> None:
    case = make_case(count=2)
    concepts, words = ConceptSet(case.concepts), torch.ones(case.encoding.shape[:2], dtype=torch.bool)
    words[:, -1] = False
    other = case.encoding * 0.9
    whole, masked = (EditedEncoding(concepts, case.encoding, other, mask) for mask in (None, words))
    w = weight(FIRST, case.dim)
    for project, source in ((EditedEncoding.key, other), (EditedEncoding.value, case.encoding)):
        got, edited = (project(it, FIRST, case.encoding, lambda e: e @ w.T) for it in (masked, whole))
        assert torch.equal(got[:, -1], (source @ w.T)[:, -1])
        assert torch.equal(got[:, :-1], edited[:, :-1])
        assert not torch.equal(edited[:, -1], got[:, -1])


def test_a_view_of_an_edited_encoding_is_that_encoding() -> None:
    case = make_case()
    edited = EditedEncoding(ConceptSet(case.concepts), case.encoding)
    assert edited.is_of(case.encoding.view(*case.encoding.shape))
    assert not edited.is_of(case.encoding.clone())
    assert not edited.is_of(case.encoding[:, :-1])


def test_no_gate_opens_on_a_zero_where_zeros_are_padding() -> None:
    case = make_case(count=2)
    case.encoding[:, -1] = 0
    plain, padded = ConceptSet(case.concepts), ConceptSet(case.concepts, zero_padded=True)
    assert not padded.gates(case.encoding)[:, -1].any()
    assert not padded.edit_input(case.encoding)[:, -1].any()
    assert plain.gates(case.encoding)[:, -1].all()
    for give in (ConceptSet.gates, ConceptSet.edit_input):
        assert torch.equal(give(padded, case.encoding)[:, :-1], give(plain, case.encoding)[:, :-1])
