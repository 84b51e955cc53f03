"""The admin page of one row, with what its fields do not say."""

from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, HttpResponse

from gateway.read_only_admin import ModelAdmin

if TYPE_CHECKING:
    Base = ModelAdmin
else:  # it stands before a class of Django's, which comes with its own base
    Base = object


class RowPage(Base):
    """A base of admin classes whose page of a row shows more than fields. The page that adds a row does not."""

    def beside_fields(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """What the page's template gets of the row `obj`."""
        raise NotImplementedError

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Give the template what it shows beside the fields."""
        obj = kwargs.get("obj")
        if obj is not None:
            context.update(self.beside_fields(request, obj))
        return super().render_change_form(request, context, *args, **kwargs)
