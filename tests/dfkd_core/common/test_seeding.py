import torch

from dfkd_core.common.seeding import derive_generator, derive_seed, normal_rows, uniform_rows


def test_a_stream_depends_on_its_whole_address():
    addresses: list[tuple[int, tuple[str | int, ...]]] = [
        *((0, ("a", 1)), (0, ("a", 2)), (0, ("b", 1)), (1, ("a", 1)), (0, ("a/1",)), (0, ())),
    ]
    seeds = {derive_seed(seed, *path) for seed, path in addresses}
    assert len(seeds) == 5  # ("a", 1) and ("a/1",) name the same stream


def test_same_address_gives_the_same_numbers():
    first = torch.randn(5, generator=derive_generator(3, "target", 7))
    torch.randn(11)
    assert torch.equal(first, torch.randn(5, generator=derive_generator(3, "target", 7)))


def test_a_row_does_not_depend_on_the_rows_around_it():
    alone = normal_rows(0, "prior", [7], (3, 2))
    among = normal_rows(0, "prior", range(5, 10), (3, 2))
    assert torch.equal(alone[0], among[2])
    assert torch.equal(uniform_rows(0, "prior", [7], (4,))[0], uniform_rows(0, "prior", [2, 7], (4,))[1])


def test_rows_of_no_image_are_empty():
    assert normal_rows(0, "prior", [], (3, 2)).shape == (0, 3, 2)


def test_rows_are_standard_normal_and_uniform():
    normal = normal_rows(0, "x", range(2000), (8,))
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.02
    assert abs(torch.corrcoef(normal.T)[0, 1]) < 0.08
    uniform = uniform_rows(0, "x", range(2000), (8,))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
