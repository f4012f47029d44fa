"""Models of torch as tests want them; imports torch only when it is used."""


def disturbed(model, scale=0.1):
    """The model in evaluation mode with noise of this size on every parameter, as fresh norms and biases are
    constants."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()
