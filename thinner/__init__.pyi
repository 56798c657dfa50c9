from thinner.errors import UserError as UserError
from thinner.network import Network as Network
from thinner.network import Prediction as Prediction
from thinner.network import UnreadablePictureError as UnreadablePictureError
from thinner.network import load as load

__all__ = ["Network", "Prediction", "UnreadablePictureError", "UserError", "load"]
